# Permissions: read and write results below one prefix, read inputs.

data "aws_partition" "current" {}

locals {
  s3   = "arn:${data.aws_partition.current.partition}:s3:::"
  head = "${var.name}-head"

  # On EC2 the head has its own role: it starts and terminates the other machines.
  roles  = var.runs_on == "eks" ? [var.name] : [local.head, "${var.name}-worker"]
  issuer = var.oidc_provider_arn == null ? "" : split("oidc-provider/", var.oidc_provider_arn)[1]
}

# For a missing key, S3 answers 404 only if the role may list the bucket, and 403 otherwise; a run must be able to tell
# these apart. Such a request has no prefix, hence IfExists. As a result, keys elsewhere in the bucket can be listed, though
# not read: use a separate bucket for results.
data "aws_iam_policy_document" "store" {
  statement {
    sid       = "Results"
    actions   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    resources = ["${aws_s3_bucket.results.arn}/${var.prefix}/*"]
  }

  statement {
    sid       = "ListResults"
    actions   = ["s3:ListBucket"]
    resources = [aws_s3_bucket.results.arn]

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
    resources = [aws_s3_bucket.results.arn]
  }

  dynamic "statement" {
    for_each = var.inputs

    content {
      actions   = ["s3:GetObject"]
      resources = ["${local.s3}${join("/", compact([statement.value.bucket, statement.value.prefix]))}/*"]
    }
  }

  dynamic "statement" {
    for_each = var.inputs

    content {
      actions   = ["s3:ListBucket"]
      resources = ["${local.s3}${statement.value.bucket}"]

      condition {
        test     = "StringLikeIfExists"
        variable = "s3:prefix"
        values   = statement.value.prefix == "" ? ["*"] : [statement.value.prefix, "${statement.value.prefix}/*"]
      }
    }
  }
}

resource "aws_iam_policy" "store" {
  name   = "${var.name}-store"
  policy = data.aws_iam_policy_document.store.json
}

# The service accounts are in infra/k8s/base.
data "aws_iam_policy_document" "trust_eks" {
  statement {
    actions = ["sts:AssumeRoleWithWebIdentity"]

    principals {
      type        = "Federated"
      identifiers = compact([var.oidc_provider_arn])
    }

    condition {
      test     = "StringEquals"
      variable = "${local.issuer}:sub"
      values   = [for account in ["gnp-head", "gnp-worker"] : "system:serviceaccount:${var.namespace}:${account}"]
    }

    condition {
      test     = "StringEquals"
      variable = "${local.issuer}:aud"
      values   = ["sts.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "trust_ec2" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "gnp" {
  for_each = toset(local.roles)
  name     = each.key

  assume_role_policy = (
    var.runs_on == "eks"
    ? data.aws_iam_policy_document.trust_eks.json
    : data.aws_iam_policy_document.trust_ec2.json
  )
}

resource "aws_iam_role_policy_attachment" "store" {
  for_each   = aws_iam_role.gnp
  role       = each.value.name
  policy_arn = aws_iam_policy.store.arn
}
