output "http" {
  description = "Where clients of the OpenAI API go: the load balancer."
  value       = "http://${aws_lb.coordinators.dns_name}:${local.http_port}"
}

output "endpoint" {
  description = "For `FOGGARA_ENDPOINT`, inside the network: every coordinator, so that answers go on at another one."
  value       = join(",", module.files.grpc)
}

output "vpc_id" {
  description = "The cluster's network, for peering."
  value       = aws_vpc.cluster.id
}

output "coordinator_instance_ids" {
  description = "Machines of coordinators, for Session Manager."
  value       = { for name, instance in aws_instance.coordinators : name => instance.id }
}

output "worker_instance_ids" {
  description = "Machines of workers, for Session Manager."
  value       = { for name, instance in aws_instance.workers : name => instance.id }
}
