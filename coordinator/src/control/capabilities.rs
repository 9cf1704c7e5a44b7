//! What workers can do, on the wire and as the state has it.

use foggara_proto::wire::admin as wire;

use crate::cluster::state::{Capabilities, Device, DeviceKind};

impl TryFrom<wire::Capabilities> for Capabilities {
    type Error = String;

    /// A worker that does not say what it computes on has a CPU.
    ///
    /// # Errors
    /// If it computes on something that is not known here.
    fn try_from(c: wire::Capabilities) -> Result<Self, String> {
        Ok(Self {
            threads: c.threads,
            memory_bytes: c.memory_bytes,
            read_bytes_per_second: c.read_bytes_per_second,
            flops: c.flops,
            cpu: c.cpu,
            version: c.version,
            device: c.device.map_or_else(|| Ok(Device::default()), Device::try_from)?,
            cache_bytes: c.cache_bytes,
            cache_bytes_per_second: c.cache_bytes_per_second,
            int8_ops_per_second: c.int8_ops_per_second,
        })
    }
}

impl TryFrom<wire::Device> for Device {
    type Error = String;

    fn try_from(d: wire::Device) -> Result<Self, String> {
        let kinds = [DeviceKind::Cpu, DeviceKind::Cuda];
        let kind = kinds.into_iter().find(|kind| kind.name() == d.kind);
        Ok(Self {
            kind: kind.ok_or_else(|| {
                let kind = d.kind;
                format!(
                    "it computes on `{kind}`, which is not one of cpu, cuda: upgrade the coordinators first"
                )
            })?,
            name: d.name,
            unique_id: d.uuid,
            total_bytes: d.total_bytes,
            kv_dtypes: d.kv_dtypes,
            quantize: d.quantize,
            data_parallel: d.data_parallel,
        })
    }
}

impl From<Capabilities> for wire::Capabilities {
    fn from(c: Capabilities) -> Self {
        Self {
            threads: c.threads,
            memory_bytes: c.memory_bytes,
            read_bytes_per_second: c.read_bytes_per_second,
            flops: c.flops,
            cpu: c.cpu,
            version: c.version,
            device: Some(c.device.into()),
            cache_bytes: c.cache_bytes,
            cache_bytes_per_second: c.cache_bytes_per_second,
            int8_ops_per_second: c.int8_ops_per_second,
            // Of a live session only: it is no part of the state.
            memory_limit_bytes: 0,
        }
    }
}

impl From<Device> for wire::Device {
    fn from(d: Device) -> Self {
        Self {
            kind: d.kind.name().into(),
            name: d.name,
            uuid: d.unique_id,
            total_bytes: d.total_bytes,
            kv_dtypes: d.kv_dtypes,
            quantize: d.quantize,
            data_parallel: d.data_parallel,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu() -> Capabilities {
        Capabilities {
            threads: 3,
            memory_bytes: 140_000_000_000,
            read_bytes_per_second: 4_260_000_000_000,
            flops: 783_000_000_000_000,
            cpu: "a processor".into(),
            version: "0.1.0".into(),
            device: Device {
                kind: DeviceKind::Cuda,
                name: "NVIDIA H200".into(),
                unique_id: "0a-1b".into(),
                total_bytes: 150_000_000_000,
                kv_dtypes: vec!["f16".into()],
                quantize: vec!["none".into(), "fp8".into(), "one of tomorrow".into()],
                data_parallel: false,
            },
            cache_bytes: 300_000_000,
            cache_bytes_per_second: 25_000_000_000,
            int8_ops_per_second: 5_000_000_000_000,
        }
    }

    #[test]
    fn they_are_the_same_after_a_way_there_and_back() {
        for capabilities in [gpu(), Capabilities::default()] {
            let told = wire::Capabilities::from(capabilities.clone());
            assert_eq!(Capabilities::try_from(told), Ok(capabilities));
        }
    }

    #[test]
    fn what_does_not_say_has_a_cpu_and_what_is_unknown_is_refused() {
        let told = |device| wire::Capabilities { device, ..gpu().into() };
        let old = Capabilities::try_from(told(None)).expect("as workers were");
        assert_eq!(old, Capabilities { device: Device::default(), ..gpu() });
        assert_eq!(old.device.kind, DeviceKind::Cpu);
        for kind in ["", "tpu"] {
            let device = wire::Device { kind: kind.into(), ..gpu().device.into() };
            let refused = Capabilities::try_from(told(Some(device))).expect_err("unknown");
            assert!(refused.contains(&format!("`{kind}`")), "{refused}");
        }
    }
}
