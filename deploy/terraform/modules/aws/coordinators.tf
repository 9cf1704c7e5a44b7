# Three coordinators, each in a zone of its own, with an address and a disk that outlive the machine.

resource "aws_network_interface" "coordinators" {
  for_each = local.coordinators

  subnet_id       = aws_subnet.coordinators[each.key].id
  private_ips     = [each.value.address]
  security_groups = [aws_security_group.coordinators.id]
  tags            = merge(local.tags, { Name = "${var.name}-${each.key}" })
}

# The Raft log. A coordinator that comes back without it would have forgotten what it has promised.
resource "aws_ebs_volume" "data" {
  for_each = local.coordinators

  availability_zone = each.value.zone
  size              = var.data_gib
  type              = "gp3"
  encrypted         = true
  kms_key_id        = var.kms_key_arn
  tags              = merge(local.tags, { Name = "${var.name}-${each.key}" })

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_instance" "coordinators" {
  for_each = local.coordinators

  ami                  = var.image
  instance_type        = var.coordinator_type
  iam_instance_profile = aws_iam_instance_profile.machine.name
  user_data_base64     = base64gzip(module.files.cloud_init[each.key])
  tags                 = merge(local.tags, { Name = "${var.name}-${each.key}" })

  primary_network_interface {
    network_interface_id = aws_network_interface.coordinators[each.key].id
  }
  metadata_options {
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }
  root_block_device {
    encrypted   = true
    kms_key_id  = var.kms_key_arn
    volume_type = "gp3"
  }

  lifecycle {
    # Machines read it at their first start only. Another one would stop all three at once.
    ignore_changes = [ami, user_data_base64]
  }
  # What a machine needs at its first start.
  depends_on = [
    aws_iam_role_policy.machine,
    aws_route_table_association.coordinators,
    aws_vpc_endpoint.services,
    aws_vpc_security_group_egress_rule.flows,
    aws_vpc_security_group_egress_rule.s3,
    aws_vpc_security_group_ingress_rule.flows,
  ]
}

resource "aws_volume_attachment" "data" {
  for_each = local.coordinators

  device_name                    = "/dev/sdf"
  volume_id                      = aws_ebs_volume.data[each.key].id
  instance_id                    = aws_instance.coordinators[each.key].id
  stop_instance_before_detaching = true
}
