terraform {
  required_version = ">= 1.9, < 2.0" # conditions of variables may look at other variables since 1.9

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
