# Who may talk to whom. Groups refer to each other, never to addresses; the one exception is who the clients are.

resource "aws_security_group" "balancer" {
  name_prefix = "${var.name}-balancer-"
  description = "The load balancer over the coordinators"
  vpc_id      = aws_vpc.cluster.id
  tags        = merge(local.tags, { Name = "${var.name}-balancer" })
}

resource "aws_security_group" "coordinators" {
  name_prefix = "${var.name}-coordinators-"
  description = "Coordinators"
  vpc_id      = aws_vpc.cluster.id
  tags        = merge(local.tags, { Name = "${var.name}-coordinators" })
}

resource "aws_security_group" "workers" {
  name_prefix = "${var.name}-workers-"
  description = "Workers"
  vpc_id      = aws_vpc.cluster.id
  tags        = merge(local.tags, { Name = "${var.name}-workers" })
}

resource "aws_security_group" "endpoints" {
  name_prefix = "${var.name}-endpoints-"
  description = "Endpoints of AWS's services"
  vpc_id      = aws_vpc.cluster.id
  tags        = merge(local.tags, { Name = "${var.name}-endpoints" })
}

locals {
  groups = {
    balancer     = aws_security_group.balancer.id
    coordinators = aws_security_group.coordinators.id
    workers      = aws_security_group.workers.id
    endpoints    = aws_security_group.endpoints.id
  }
  # Each is a rule at both its ends: from, to, first and last port of TCP.
  flows = {
    balancer-http     = { from = "balancer", to = "coordinators", first = local.http_port, last = local.http_port }
    balancer-grpc     = { from = "balancer", to = "coordinators", first = local.grpc_port, last = local.grpc_port }
    raft              = { from = "coordinators", to = "coordinators", first = local.grpc_port, last = local.grpc_port }
    join              = { from = "workers", to = "coordinators", first = local.grpc_port, last = local.grpc_port }
    drive             = { from = "coordinators", to = "workers", first = local.first_worker_port, last = local.last_worker_port }
    coordinator-calls = { from = "coordinators", to = "endpoints", first = 443, last = 443 }
    worker-calls      = { from = "workers", to = "endpoints", first = 443, last = 443 }
  }
}

resource "aws_vpc_security_group_ingress_rule" "flows" {
  for_each = local.flows

  description                  = each.key
  security_group_id            = local.groups[each.value.to]
  referenced_security_group_id = local.groups[each.value.from]
  ip_protocol                  = "tcp"
  from_port                    = each.value.first
  to_port                      = each.value.last
  tags                         = local.tags
}

resource "aws_vpc_security_group_egress_rule" "flows" {
  for_each = local.flows

  description                  = each.key
  security_group_id            = local.groups[each.value.from]
  referenced_security_group_id = local.groups[each.value.to]
  ip_protocol                  = "tcp"
  from_port                    = each.value.first
  to_port                      = each.value.last
  tags                         = local.tags
}

# Collectives take ports that the system chooses, and the fast fabric is no TCP: both ways, everything, among workers.
resource "aws_vpc_security_group_ingress_rule" "fabric" {
  description                  = "collectives"
  security_group_id            = aws_security_group.workers.id
  referenced_security_group_id = aws_security_group.workers.id
  ip_protocol                  = "-1"
  tags                         = local.tags
}

resource "aws_vpc_security_group_egress_rule" "fabric" {
  description                  = "collectives"
  security_group_id            = aws_security_group.workers.id
  referenced_security_group_id = aws_security_group.workers.id
  ip_protocol                  = "-1"
  tags                         = local.tags
}

# The program and the models.
resource "aws_vpc_security_group_egress_rule" "s3" {
  for_each = { coordinators = aws_security_group.coordinators.id, workers = aws_security_group.workers.id }

  description       = "S3"
  security_group_id = each.value
  prefix_list_id    = aws_vpc_endpoint.s3.prefix_list_id
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
  tags              = local.tags
}

resource "aws_vpc_security_group_ingress_rule" "clients" {
  for_each = {
    for pair in setproduct(var.client_cidrs, [local.http_port, local.grpc_port]) : "${pair[0]} ${pair[1]}" => { cidr = pair[0], port = pair[1] }
  }

  description       = "clients"
  security_group_id = aws_security_group.balancer.id
  cidr_ipv4         = each.value.cidr
  ip_protocol       = "tcp"
  from_port         = each.value.port
  to_port           = each.value.port
  tags              = local.tags
}

# What machines may do: read the program, the models and the one secret, and be reached by Session Manager.

resource "aws_iam_role" "machine" {
  name_prefix = "${var.name}-machine-"
  assume_role_policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = "sts:AssumeRole", Principal = { Service = "ec2.amazonaws.com" } }]
  })
  tags = local.tags
}

resource "aws_iam_role_policy" "machine" {
  name_prefix = "${var.name}-machine-"
  role        = aws_iam_role.machine.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(
      [
        { Effect = "Allow", Action = ["secretsmanager:GetSecretValue"], Resource = [var.token_secret_arn] },
        { Effect = "Allow", Action = ["s3:GetObject"], Resource = ["arn:aws:s3:::${var.binary_bucket}/${var.binary_key}"] },
        {
          Effect = "Allow"
          Action = [
            "ssm:UpdateInstanceInformation",
            "ssmmessages:CreateControlChannel", "ssmmessages:CreateDataChannel",
            "ssmmessages:OpenControlChannel", "ssmmessages:OpenDataChannel",
          ]
          Resource = ["*"]
        },
      ],
      [for bucket in compact([var.models_bucket]) : {
        Effect = "Allow", Action = ["s3:GetObject", "s3:ListBucket"], Resource = ["arn:aws:s3:::${bucket}", "arn:aws:s3:::${bucket}/*"]
      }],
      [for key in compact([var.kms_key_arn]) : { Effect = "Allow", Action = ["kms:Decrypt"], Resource = [key] }],
    )
  })
}

resource "aws_iam_instance_profile" "machine" {
  name_prefix = "${var.name}-machine-"
  role        = aws_iam_role.machine.name
  tags        = local.tags
}
