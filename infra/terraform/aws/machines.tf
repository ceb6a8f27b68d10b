# Permissions of the machines of infra/ray/aws.yaml other than for the store; not needed on EKS.

locals {
  machines = toset(var.runs_on == "ec2" ? local.roles : [])
  heads    = toset(var.runs_on == "ec2" ? [local.head] : [])
}

resource "aws_iam_instance_profile" "gnp" {
  for_each = local.machines
  name     = each.key
  role     = aws_iam_role.gnp[each.key].name
}

# The launcher connects by ssh through Systems Manager.
resource "aws_iam_role_policy_attachment" "systems_manager" {
  for_each   = local.machines
  role       = aws_iam_role.gnp[each.key].name
  policy_arn = "arn:${data.aws_partition.current.partition}:iam::aws:policy/AmazonSSMManagedInstanceCore"
}

data "aws_iam_policy_document" "autoscaler" {
  for_each = local.heads

  statement {
    sid       = "Start"
    actions   = ["ec2:Describe*", "ec2:RunInstances"]
    resources = ["*"]
  }

  statement {
    sid       = "TagWhatStarts"
    actions   = ["ec2:CreateTags"]
    resources = ["*"]

    condition {
      test     = "StringEquals"
      variable = "ec2:CreateAction"
      values   = ["RunInstances"]
    }
  }

  # The launcher sets this tag to the cluster's name.
  statement {
    sid       = "TagAndEndItsOwn"
    actions   = ["ec2:CreateTags", "ec2:TerminateInstances"]
    resources = ["*"]

    condition {
      test     = "StringEquals"
      variable = "ec2:ResourceTag/ray-cluster-name"
      values   = [var.name]
    }
  }

  statement {
    sid       = "GiveWorkersTheirRole"
    actions   = ["iam:PassRole"]
    resources = [for name, role in aws_iam_role.gnp : role.arn if name != each.key]
  }
}

resource "aws_iam_role_policy" "autoscaler" {
  for_each = local.heads
  name     = "autoscaler"
  role     = aws_iam_role.gnp[each.key].name
  policy   = data.aws_iam_policy_document.autoscaler[each.key].json
}
