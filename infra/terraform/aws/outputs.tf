output "store" {
  description = "What `gnp generate --store` is given."
  value       = "s3://${aws_s3_bucket.results.bucket}/${var.prefix}"
}

output "role_arns" {
  description = "By name; on EKS, what infra/k8s/overlays/eks writes on the service accounts."
  value       = { for name, role in aws_iam_role.gnp : name => role.arn }
}

output "instance_profiles" {
  description = "What infra/ray/aws.yaml calls IamInstanceProfile; none on EKS."
  value       = keys(aws_iam_instance_profile.gnp)
}
