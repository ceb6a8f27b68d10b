terraform {
  required_version = ">= 1.9, < 2.0" # since 1.9, validations of variables can refer to other variables

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.0"
    }
  }
}

provider "aws" {
  region = var.region

  default_tags {
    tags = { project = "gnp" }
  }
}
