variable "endpoint" {
  description = "The store's address: https://s3.example.org."
  type        = string

  validation {
    condition     = can(regex("^https://[^/]+$", var.endpoint))
    error_message = "https:// and a host, optionally with a port: keys and results must be encrypted in transit."
  }
}

variable "region" {
  description = "Region name of the store; most accept any."
  type        = string
  default     = "us-east-1"
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
  description = "Buckets with images and checkpoints, read only."
  type        = list(string)
  default     = []
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
