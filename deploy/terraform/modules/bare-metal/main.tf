module "files" {
  source = "../cluster-files"

  hosts = {
    for name, host in var.hosts : name => {
      address     = host.address
      coordinator = host.coordinator
      workers     = host.workers
      models      = host.models
    }
  }
  cluster_id           = var.cluster_id
  http_port            = var.http_port
  grpc_port            = var.grpc_port
  first_worker_port    = var.first_worker_port
  tls                  = local.tls
  coordinator_settings = var.coordinator_settings
  worker_settings      = var.worker_settings
}

locals {
  sudo       = var.ssh_user == "root" ? "" : "sudo -n "
  staging    = ".foggara-staging"
  binary_sha = filesha256(var.binary)
  # Of a token that cannot be guessed, the hash tells nothing.
  token_sha = nonsensitive(sha256("foggara cluster token ${var.cluster_token}"))
  script    = file("${path.module}/scripts/host.sh")
  tls       = nonsensitive(var.tls != null)
  # What a host gets beside the token, in the same form as `bundles`.
  certificates = { for name, host in var.hosts : name => join("", concat(["# certificates\n"], local.tls ? [
    "644 /etc/foggara/ca.crt ${base64encode(var.tls.ca)}\n",
    "600 /etc/foggara/tls.key ${base64encode(var.tls.certificates[name].key)}\n",
    "644 /etc/foggara/tls.crt ${base64encode(var.tls.certificates[name].certificate)}\n",
  ] : [])) }

  # A line for each file: its mode, its place, its content in base64.
  bundles = {
    for name, files in module.files.files : name => join("", concat(
      [for path, content in files : "644 ${path} ${base64encode(content)}\n"],
      var.service_manager == "systemd" ? [for path, content in module.files.units : "644 ${path} ${base64encode(content)}\n"] : [],
      ["644 /usr/local/lib/foggara/host.env ${base64encode(join("\n", [
        "host=${name}",
        "service_manager=${var.service_manager}",
        "endpoints=${join(",", module.files.grpc)}",
        # Those that compute first, the one that answers last.
        "processes='${join(" ", [for process in reverse(module.files.processes[name]) : "${process.name}=${process.address}"])}'",
        "binary_sha=${local.binary_sha}",
        "token_sha=${local.token_sha}",
        "tls=${local.tls ? "yes" : "no"}",
        # Other certificates are put in their places; processes take them by themselves.
        "tls_sha=${nonsensitive(sha256(local.certificates[name]))}",
        "",
      ]))}\n"],
    ))
  }
  generations = { for name, bundle in local.bundles : name => sha256("${local.script} ${bundle}") }
}

# The coordinators are the Raft members that are written on their disks. What was applied first is kept, and compared.
resource "terraform_data" "coordinators" {
  input = { cluster_id = var.cluster_id, peers = module.files.peers }

  lifecycle {
    ignore_changes = [input]
    postcondition {
      condition     = self.input.cluster_id == var.cluster_id && join(",", self.input.peers) == join(",", module.files.peers)
      error_message = "The coordinators of a running cluster cannot change, neither their number, names, addresses and ports nor `cluster_id`: it was made with ${join(",", self.input.peers)} (${self.input.cluster_id}). Put them back, or destroy the cluster with purge = true and make another. Hosts with workers alone may come and go."
    }
  }
}

# A machine, for as long as it belongs to the cluster: what is removed from it when it no longer does.
resource "terraform_data" "host" {
  for_each = var.hosts

  # Another address is another machine.
  triggers_replace = [each.value.address]
  # All that destroying may look at.
  input = {
    address  = coalesce(each.value.ssh_address, each.value.address)
    port     = each.value.ssh_port
    host_key = each.value.ssh_host_key
    user     = var.ssh_user
    key_file = var.ssh_private_key_file
    sudo     = local.sudo
    purge    = var.purge
  }

  connection {
    type        = "ssh"
    host        = self.output.address
    port        = self.output.port
    host_key    = self.output.host_key
    user        = self.output.user
    private_key = self.output.key_file == null ? null : file(self.output.key_file)
    agent       = self.output.key_file == null
  }

  provisioner "remote-exec" {
    when   = destroy
    inline = ["if [ -e /usr/local/lib/foggara/host.sh ]; then ${self.output.sudo}sh /usr/local/lib/foggara/host.sh remove ${self.output.purge ? "purge" : ""}; fi; rm -rf .foggara-staging"]
  }
}

# Puts the program on each machine, where nothing uses it yet.
resource "terraform_data" "program" {
  for_each = var.hosts

  triggers_replace = [terraform_data.host[each.key].id, local.binary_sha]

  lifecycle {
    precondition {
      condition     = var.binary_sha256 == null ? true : var.binary_sha256 == local.binary_sha
      error_message = "binary: its SHA-256 is ${local.binary_sha}, not that of `binary_sha256`."
    }
  }

  connection {
    type        = "ssh"
    host        = coalesce(each.value.ssh_address, each.value.address)
    port        = each.value.ssh_port
    host_key    = each.value.ssh_host_key
    user        = var.ssh_user
    private_key = var.ssh_private_key_file == null ? null : file(var.ssh_private_key_file)
    agent       = var.ssh_private_key_file == null
  }

  provisioner "remote-exec" {
    inline = ["mkdir -p -m 700 ${local.staging}"]
  }
  provisioner "file" {
    source      = var.binary
    destination = "${local.staging}/foggara-${local.binary_sha}"
  }
}

# The same for its configuration, the token, the certificates and the script that installs them.
resource "terraform_data" "configuration" {
  for_each = var.hosts

  triggers_replace = [terraform_data.host[each.key].id, local.generations[each.key]]

  connection {
    type        = "ssh"
    host        = coalesce(each.value.ssh_address, each.value.address)
    port        = each.value.ssh_port
    host_key    = each.value.ssh_host_key
    user        = var.ssh_user
    private_key = var.ssh_private_key_file == null ? null : file(var.ssh_private_key_file)
    agent       = var.ssh_private_key_file == null
  }

  provisioner "remote-exec" {
    inline = ["mkdir -p -m 700 ${local.staging}"]
  }
  provisioner "file" {
    content     = local.bundles[each.key]
    destination = "${local.staging}/bundle"
  }
  provisioner "file" {
    content     = local.script
    destination = "${local.staging}/host.sh"
  }
  provisioner "file" {
    content     = "${var.cluster_token}\n"
    destination = "${local.staging}/cluster-token"
  }
  provisioner "file" {
    content     = local.certificates[each.key]
    destination = "${local.staging}/certificates"
  }
}

# Makes the machines run what has been put on them. One resource, one script: instances of a resource are made at the same
# time, and only one machine may be restarted at a time.
resource "terraform_data" "roll" {
  triggers_replace = local.generations
  depends_on       = [terraform_data.program, terraform_data.configuration, terraform_data.coordinators]

  provisioner "local-exec" {
    interpreter = ["/bin/sh", "-c"]
    command     = "exec sh \"$ROLL\""
    environment = {
      ROLL = "${path.module}/scripts/roll.sh"
      # Machines of workers alone first.
      HOSTS = join("\n", [for line in sort([
        for name, host in var.hosts : join(" ", [
          host.coordinator ? "1" : "0", name, coalesce(host.ssh_address, host.address), host.ssh_port, local.generations[name],
        ])
      ]) : line])
      HOST_KEYS = join("\n", [
        for name, host in var.hosts : "${host.ssh_port == 22 ? coalesce(host.ssh_address, host.address) : "[${coalesce(host.ssh_address, host.address)}]:${host.ssh_port}"} ${host.ssh_host_key}"
        if host.ssh_host_key != null
      ])
      SSH_USER           = var.ssh_user
      SSH_KEY            = var.ssh_private_key_file == null ? "" : abspath(var.ssh_private_key_file)
      SUDO               = local.sudo
      WORKERS            = module.files.workers
      SETTLE_SECONDS     = var.settle_seconds
      ALLOW_INTERRUPTION = var.allow_interruption ? "yes" : "no"
    }
  }
}
