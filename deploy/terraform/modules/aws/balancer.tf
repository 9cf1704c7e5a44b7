# One address over the coordinators, inside the network. Those that are not ready get nothing new.

resource "aws_lb" "coordinators" {
  name                             = var.name
  load_balancer_type               = "network"
  internal                         = true
  subnets                          = [for subnet in aws_subnet.coordinators : subnet.id]
  security_groups                  = [aws_security_group.balancer.id]
  enable_cross_zone_load_balancing = true
  tags                             = local.tags
}

locals {
  doors = { http = local.http_port, grpc = local.grpc_port }
}

resource "aws_lb_target_group" "coordinators" {
  for_each = local.doors

  name        = "${var.name}-${each.key}"
  port        = each.value
  protocol    = "TCP"
  target_type = "ip"
  vpc_id      = aws_vpc.cluster.id
  # A coordinator lets answers end for ten seconds.
  deregistration_delay = 15
  tags                 = local.tags

  health_check {
    protocol            = "HTTP"
    path                = "/readyz"
    port                = tostring(local.http_port)
    interval            = 10
    healthy_threshold   = 2
    unhealthy_threshold = 2
  }
}

resource "aws_lb_target_group_attachment" "coordinators" {
  for_each = {
    for pair in setproduct(keys(local.doors), keys(local.coordinators)) : "${pair[0]} ${pair[1]}" => { door = pair[0], coordinator = pair[1] }
  }

  target_group_arn = aws_lb_target_group.coordinators[each.value.door].arn
  target_id        = local.coordinators[each.value.coordinator].address
  port             = local.doors[each.value.door]
  depends_on       = [aws_instance.coordinators]
}

resource "aws_lb_listener" "coordinators" {
  for_each = local.doors

  load_balancer_arn = aws_lb.coordinators.arn
  port              = each.value
  protocol          = "TCP"
  tags              = local.tags

  default_action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.coordinators[each.key].arn
  }
}
