variable "region" {
  description = "Where the bucket lies: the machines' own region, for traffic between regions costs money and time."
  type        = string
}

variable "bucket" {
  description = "Name of the bucket for results, which is made here."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", var.bucket))
    error_message = "A bucket's name has 3 to 63 lower-case letters, digits, dots and hyphens."
  }
}

variable "prefix" {
  description = "Below which everything that gnp writes lies: its stores are s3://BUCKET/PREFIX, or below that."
  type        = string
  default     = "results"

  validation {
    condition     = can(regex("^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$", var.prefix))
    error_message = "A prefix has no slash at its beginning and end, and is not empty: gnp/results."
  }
}

variable "inputs" {
  description = "Where images and checkpoints are read from, and never written to; an empty prefix is the whole bucket."
  type        = list(object({ bucket = string, prefix = string }))
  default     = []

  validation {
    condition     = alltrue([for input in var.inputs : !startswith(input.prefix, "/") && !endswith(input.prefix, "/")])
    error_message = "A prefix has no slash at its beginning and end."
  }
}

variable "versioning" {
  description = "Whether the bucket keeps what is overwritten or removed, for noncurrent_days."
  type        = bool
  default     = false
}

variable "noncurrent_days" {
  description = "How long a bucket with versioning keeps what was overwritten or removed."
  type        = number
  default     = 30

  validation {
    condition     = var.noncurrent_days >= 1 && floor(var.noncurrent_days) == var.noncurrent_days
    error_message = "A whole number of days, from 1."
  }
}

variable "name" {
  description = "What roles and policies are called, or begin with."
  type        = string
  default     = "gnp"
}

variable "runs_on" {
  description = "Who takes the role: `eks`, the pods of infra/k8s; `ec2`, the machines of infra/ray/aws.yaml."
  type        = string

  validation {
    condition     = contains(["eks", "ec2"], var.runs_on)
    error_message = "Either eks or ec2."
  }
}

variable "oidc_provider_arn" {
  description = "With `eks`: the cluster's OIDC provider in IAM."
  type        = string
  default     = null

  validation {
    condition     = (var.runs_on == "eks") == (var.oidc_provider_arn != null)
    error_message = "It is to be given with runs_on = \"eks\", and not otherwise."
  }
}

variable "namespace" {
  description = "With `eks`: where infra/k8s is applied."
  type        = string
  default     = "gnp"
}
