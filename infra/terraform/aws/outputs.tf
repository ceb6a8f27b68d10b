output "store" {
  description = "Value for `gnp generate --store`."
  value       = "s3://${aws_s3_bucket.results.bucket}/${var.prefix}"
}

output "role_arns" {
  description = "ARNs of the roles by name; on EKS, for the service accounts in infra/k8s/overlays/eks."
  value       = { for name, role in aws_iam_role.gnp : name => role.arn }
}

output "instance_profiles" {
  description = "Values for IamInstanceProfile in infra/ray/aws.yaml; none on EKS."
  value       = keys(aws_iam_instance_profile.gnp)
}
