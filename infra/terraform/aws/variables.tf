variable "region" {
  description = "Region of the bucket: that of the machines, since traffic between regions costs money and time."
  type        = string
}

variable "bucket" {
  description = "Name of the bucket for results, which is created here."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", var.bucket))
    error_message = "A bucket's name has 3 to 63 lower-case letters, digits, dots and hyphens."
  }
}

variable "prefix" {
  description = "Prefix of everything that gnp writes: its stores are s3://BUCKET/PREFIX, or below that."
  type        = string
  default     = "results"

  validation {
    condition     = can(regex("^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$", var.prefix))
    error_message = "A prefix has no slash at its beginning and end, and is not empty: gnp/results."
  }
}

variable "inputs" {
  description = "Buckets and prefixes with images and checkpoints, read only; an empty prefix is the whole bucket."
  type        = list(object({ bucket = string, prefix = string }))
  default     = []

  validation {
    condition     = alltrue([for input in var.inputs : !startswith(input.prefix, "/") && !endswith(input.prefix, "/")])
    error_message = "A prefix has no slash at its beginning and end."
  }
}

variable "versioning" {
  description = "Whether the bucket keeps overwritten and deleted objects for noncurrent_days."
  type        = bool
  default     = false
}

variable "noncurrent_days" {
  description = "Days for which a bucket with versioning keeps overwritten and deleted objects."
  type        = number
  default     = 30

  validation {
    condition     = var.noncurrent_days >= 1 && floor(var.noncurrent_days) == var.noncurrent_days
    error_message = "A whole number of days, from 1."
  }
}

variable "name" {
  description = "Name of roles and policies, or prefix of their names."
  type        = string
  default     = "gnp"
}

variable "runs_on" {
  description = "What uses the role: `eks`, the pods of infra/k8s; `ec2`, the machines of infra/ray/aws.yaml."
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
    error_message = "Required with runs_on = \"eks\", and not allowed otherwise."
  }
}

variable "namespace" {
  description = "With `eks`: the namespace of infra/k8s."
  type        = string
  default     = "gnp"
}
