# A bucket on your own S3-compatible store (MinIO, Ceph, SeaweedFS …). Encryption and anonymous access are settings of the
# server there, not of the bucket.

resource "aws_s3_bucket" "results" {
  bucket = var.bucket
}

# Not every store supports versioning, so it is configured only on request.
resource "aws_s3_bucket_versioning" "results" {
  count  = var.versioning ? 1 : 0
  bucket = aws_s3_bucket.results.id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "results" {
  bucket = aws_s3_bucket.results.id

  # Objects never expire: `gnp gc` finds the ones that are not needed.
  rule {
    id     = "unfinished-uploads"
    status = "Enabled"
    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = 1
    }
  }

  dynamic "rule" {
    for_each = var.versioning ? ["old-versions"] : []

    content {
      id     = rule.value
      status = "Enabled"
      filter {}

      noncurrent_version_expiration {
        noncurrent_days = var.noncurrent_days
      }
    }
  }

  depends_on = [aws_s3_bucket_versioning.results]
}

# Users are created with the store's own tool, which takes this policy: `terraform output -raw policy > policy.json`.
data "aws_iam_policy_document" "store" {
  statement {
    sid       = "Results"
    actions   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    resources = ["arn:aws:s3:::${aws_s3_bucket.results.bucket}/${var.prefix}/*"]
  }

  statement {
    sid       = "ListResults"
    actions   = ["s3:ListBucket"]
    resources = ["arn:aws:s3:::${aws_s3_bucket.results.bucket}"]

    condition {
      test     = "StringLikeIfExists"
      variable = "s3:prefix"
      values   = [var.prefix, "${var.prefix}/*"]
    }
  }

  # For `gnp gc`. S3 has no prefix condition for this action.
  statement {
    sid       = "ListUploads"
    actions   = ["s3:ListBucketMultipartUploads"]
    resources = ["arn:aws:s3:::${aws_s3_bucket.results.bucket}"]
  }

  dynamic "statement" {
    for_each = var.inputs

    content {
      actions   = ["s3:GetObject", "s3:ListBucket"]
      resources = ["arn:aws:s3:::${statement.value}", "arn:aws:s3:::${statement.value}/*"]
    }
  }
}
