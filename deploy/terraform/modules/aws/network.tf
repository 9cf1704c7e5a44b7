# A network of its own, with no way to the internet: AWS's services are reached through endpoints in it.

resource "aws_vpc" "cluster" {
  cidr_block           = var.cidr
  enable_dns_support   = true
  enable_dns_hostnames = true
  tags                 = merge(local.tags, { Name = var.name })
}

resource "aws_subnet" "coordinators" {
  for_each = local.coordinators

  vpc_id            = aws_vpc.cluster.id
  cidr_block        = each.value.cidr
  availability_zone = each.value.zone
  tags              = merge(local.tags, { Name = "${var.name}-${each.key}" })
}

resource "aws_subnet" "workers" {
  vpc_id            = aws_vpc.cluster.id
  cidr_block        = local.worker_cidr
  availability_zone = var.worker_zone
  tags              = merge(local.tags, { Name = "${var.name}-workers" })
}

resource "aws_route_table" "private" {
  vpc_id = aws_vpc.cluster.id
  tags   = merge(local.tags, { Name = var.name })
}

resource "aws_route_table_association" "coordinators" {
  for_each = aws_subnet.coordinators

  subnet_id      = each.value.id
  route_table_id = aws_route_table.private.id
}

resource "aws_route_table_association" "workers" {
  subnet_id      = aws_subnet.workers.id
  route_table_id = aws_route_table.private.id
}

resource "aws_vpc_endpoint" "s3" {
  vpc_id            = aws_vpc.cluster.id
  service_name      = "com.amazonaws.${var.region}.s3"
  vpc_endpoint_type = "Gateway"
  route_table_ids   = [aws_route_table.private.id]
  tags              = merge(local.tags, { Name = "${var.name}-s3" })
}

# The store of secrets, and Session Manager: operators reach machines without SSH and without open ports.
resource "aws_vpc_endpoint" "services" {
  for_each = toset(["secretsmanager", "ssm", "ssmmessages"])

  vpc_id              = aws_vpc.cluster.id
  service_name        = "com.amazonaws.${var.region}.${each.key}"
  vpc_endpoint_type   = "Interface"
  private_dns_enabled = true
  subnet_ids          = [for subnet in aws_subnet.coordinators : subnet.id]
  security_group_ids  = [aws_security_group.endpoints.id]
  tags                = merge(local.tags, { Name = "${var.name}-${each.key}" })
}
