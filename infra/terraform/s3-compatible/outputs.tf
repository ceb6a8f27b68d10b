output "store" {
  description = "Value for `gnp generate --store`, with AWS_ENDPOINT_URL set to the endpoint."
  value       = "s3://${aws_s3_bucket.results.bucket}/${var.prefix}"
}

output "policy" {
  description = "Policy for gnp's user on the store."
  value       = data.aws_iam_policy_document.store.json
}
