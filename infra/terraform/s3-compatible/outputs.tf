output "store" {
  description = "What `gnp generate --store` is given, with AWS_ENDPOINT_URL set to the endpoint."
  value       = "s3://${aws_s3_bucket.results.bucket}/${var.prefix}"
}

output "policy" {
  description = "What gnp's user on the store may do."
  value       = data.aws_iam_policy_document.store.json
}
