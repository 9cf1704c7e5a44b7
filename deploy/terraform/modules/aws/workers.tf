# Machines of workers, close together in one zone.

resource "aws_placement_group" "workers" {
  name     = "${var.name}-workers"
  strategy = "cluster"
  tags     = local.tags
}

resource "aws_launch_template" "workers" {
  for_each = local.workers

  name_prefix   = "${var.name}-${each.key}-"
  image_id      = var.image
  instance_type = var.worker_type
  user_data     = base64gzip(module.files.cloud_init[each.key])
  tags          = local.tags

  iam_instance_profile {
    name = aws_iam_instance_profile.machine.name
  }
  placement {
    group_name = aws_placement_group.workers.name
  }
  metadata_options {
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }
  block_device_mappings {
    device_name = "/dev/sda1"
    ebs {
      encrypted             = true
      kms_key_id            = var.kms_key_arn
      volume_size           = var.worker_disk_gib
      volume_type           = "gp3"
      delete_on_termination = true
    }
  }
  dynamic "capacity_reservation_specification" {
    for_each = compact([var.capacity_reservation_id])
    content {
      capacity_reservation_target {
        capacity_reservation_id = capacity_reservation_specification.value
      }
    }
  }

  # The first carries IP, too; the others the fabric alone.
  network_interfaces {
    device_index          = 0
    network_card_index    = 0
    interface_type        = var.fabric_cards > 0 ? "efa" : null
    subnet_id             = aws_subnet.workers.id
    private_ip_address    = each.value.address
    security_groups       = [aws_security_group.workers.id]
    delete_on_termination = true
  }
  dynamic "network_interfaces" {
    for_each = range(1, max(var.fabric_cards, 1))
    content {
      device_index          = 1
      network_card_index    = network_interfaces.value
      interface_type        = "efa-only"
      subnet_id             = aws_subnet.workers.id
      security_groups       = [aws_security_group.workers.id]
      delete_on_termination = true
    }
  }
}

resource "aws_instance" "workers" {
  for_each = local.workers

  tags = merge(local.tags, { Name = "${var.name}-${each.key}" })

  launch_template {
    id      = aws_launch_template.workers[each.key].id
    version = aws_launch_template.workers[each.key].latest_version
  }

  lifecycle {
    # A new version of the template would replace all machines at once; see the README for how to upgrade.
    ignore_changes = [launch_template]
  }
  depends_on = [
    aws_iam_role_policy.machine,
    aws_route_table_association.workers,
    aws_vpc_endpoint.services,
    aws_vpc_security_group_egress_rule.fabric,
    aws_vpc_security_group_egress_rule.flows,
    aws_vpc_security_group_egress_rule.s3,
    aws_vpc_security_group_ingress_rule.fabric,
    aws_vpc_security_group_ingress_rule.flows,
  ]
}
