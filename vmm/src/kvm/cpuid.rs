//! The processor that the guest sees: what KVM supports and nothing that needs more than KVM ([`hidden`]), with a topology of one
//! package of single-thread cores.

mod hidden;

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Leaf 1, ECX.
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: more than one logical processor in the package.
const HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001, ECX: the same on AMD.
const CMP_LEGACY: u32 = 1 << 1;

/// What is the same for every vCPU.
pub(crate) struct Processor {
    supported: Vec<kvm_cpuid_entry2>,
    cpus: u32,
    tsc_deadline: bool,
    amd: bool,
}

impl Processor {
    /// `supported` as KVM_GET_SUPPORTED_CPUID gave it; `tsc_deadline` where the in-kernel APIC has that timer, which KVM
    /// tells by a capability instead.
    pub(crate) fn new(supported: &CpuId, cpus: u32, tsc_deadline: bool) -> Self {
        let supported = supported.as_slice().to_vec();
        // AuthenticAMD, HygonGenuine.
        let amd = supported
            .iter()
            .any(|leaf| leaf.function == 0 && matches!(&leaf.ebx.to_le_bytes(), b"Auth" | b"Hygo"));
        Self { supported, cpus, tsc_deadline, amd }
    }

    /// The first physical address past those that the guest can have (leaf 0x8000_0008).
    pub(crate) fn address_limit(&self) -> u64 {
        let leaf = self.supported.iter().find(|leaf| leaf.function == 0x8000_0008);
        // 36 bits are what a processor without the leaf has.
        1 << leaf.map_or(36, |leaf| leaf.eax & 0xff).clamp(32, 52)
    }

    /// The leaves of vCPU `id`, whose APIC ID is the same number.
    pub(crate) fn vcpu(&self, id: u32) -> CpuId {
        // Bits of the APIC ID that number the cores of the package.
        let core_bits = self.cpus.next_power_of_two().trailing_zeros();
        // Other topologies than leaf 0xb's, which comes anew, are the host's: 0x1f is Intel's, 0x8000_0026 AMD's.
        let is_ours = |leaf: &&kvm_cpuid_entry2| !matches!(leaf.function, 0xb | 0x1f | 0x8000_0026);
        let mut leaves: Vec<_> = self.supported.iter().filter(is_ours).copied().collect();
        for leaf in &mut leaves {
            hidden::hide(leaf, self.amd);
            self.adapt(leaf, id, core_bits);
        }
        if self.supported.iter().any(|leaf| leaf.function == 0 && leaf.eax >= 0xb) {
            leaves.extend(self.topology(id, core_bits));
        }
        CpuId::from_entries(&leaves).expect("fewer leaves than KVM's limit, for KVM gave them")
    }

    fn adapt(&self, leaf: &mut kvm_cpuid_entry2, id: u32, core_bits: u32) {
        let cores_mask = (1 << core_bits) - 1;
        match leaf.function {
            0x1 => {
                leaf.ebx = (id & 0xff) << 24 | (cores_mask + 1).min(0xff) << 16 | leaf.ebx & 0xffff;
                leaf.ecx |= HYPERVISOR;
                set(&mut leaf.ecx, TSC_DEADLINE, self.tsc_deadline);
                set(&mut leaf.edx, HTT, self.cpus > 1);
            }
            // Deterministic caches (Intel, AMD): the last level is the package's, the others each core's own.
            0x4 | 0x8000_001d if leaf.eax & 0x1f != 0 => {
                let shared = if leaf.eax >> 5 & 0x7 >= 3 { cores_mask } else { 0 };
                leaf.eax = leaf.eax & 0x3fff | (shared & 0xfff) << 14;
                if leaf.function == 0x4 {
                    leaf.eax |= (cores_mask & 0x3f) << 26;
                }
            }
            0x8000_0001 => set(&mut leaf.ecx, CMP_LEGACY, self.cpus > 1),
            0x8000_0008 => leaf.ecx = core_bits << 12 | (self.cpus - 1) & 0xff,
            // Extended APIC ID, core ID with one thread a core, node 0 of one.
            0x8000_001e => (leaf.eax, leaf.ebx, leaf.ecx) = (id, id & 0xff, 0),
            _ => {}
        }
    }

    /// Leaf 0xb, extended topology: threads (one a core), then cores, then the end.
    fn topology(&self, id: u32, core_bits: u32) -> [kvm_cpuid_entry2; 3] {
        let level = |index: u32, shift, processors, kind: u32| kvm_cpuid_entry2 {
            function: 0xb,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: processors,
            ecx: kind << 8 | index,
            edx: id,
            ..Default::default()
        };
        [level(0, 0, 1, 1), level(1, core_bits, self.cpus, 2), level(2, 0, 0, 0)]
    }
}

fn set(register: &mut u32, bit: u32, on: bool) {
    *register = if on { *register | bit } else { *register & !bit };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, eax: u32, ebx: u32, ecx: u32, edx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn of(cpuid: &CpuId, function: u32, index: u32) -> (u32, u32, u32, u32) {
        let mut found = cpuid.as_slice().iter().filter(|l| (l.function, l.index) == (function, index));
        let leaf = found.next().expect("the leaf is there");
        assert!(found.next().is_none(), "leaf {function:#x}.{index} is there twice");
        (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx)
    }

    #[test]
    fn the_topology_is_one_package_of_single_thread_cores() {
        let host = CpuId::from_entries(&[
            leaf(0, 0, 0x1f, 0, 0, 0),
            leaf(1, 0, 0, 0x0710_0800, 0, 0),
            leaf(4, 0, 0xfc00_0000 | 1 << 14 | 1 << 5 | 1, 0, 0, 0),
            leaf(4, 3, 0xfc00_0000 | 0xff << 14 | 3 << 5 | 3, 0, 0, 0),
            leaf(4, 4, 0, 0, 0, 0),
            leaf(0xa, 0, 0x0730_0402, 1, 2, 3),
            leaf(0xb, 0, 1, 2, 0x100, 9),
            leaf(0x1f, 0, 1, 2, 0x100, 9),
            leaf(0x8000_0001, 0, 0, 0, 0, 0),
            leaf(0x8000_0008, 0, 0x3030, 0, 0x7077, 0),
            leaf(0x8000_001e, 0, 7, 0x103, 1, 0),
            leaf(0x8000_0026, 0, 1, 2, 0x100, 9),
        ])
        .unwrap();
        let cpuid = Processor::new(&host, 3, true).vcpu(2);

        assert_eq!(of(&cpuid, 1, 0), (0, 0x0204_0800, HYPERVISOR | TSC_DEADLINE, HTT));
        assert_eq!(of(&cpuid, 4, 0).0, 3 << 26 | 1 << 5 | 1, "the first level belongs to one core");
        assert_eq!(of(&cpuid, 4, 3).0, 3 << 26 | 3 << 14 | 3 << 5 | 3, "the last level to the package");
        assert_eq!(of(&cpuid, 4, 4).0, 0, "the end of the list stays its end");
        assert_eq!(of(&cpuid, 0xa, 0), (0, 0, 0, 0));
        assert_eq!(of(&cpuid, 0xb, 0), (0, 1, 0x100, 2));
        assert_eq!(of(&cpuid, 0xb, 1), (2, 3, 0x201, 2));
        assert_eq!(of(&cpuid, 0xb, 2), (0, 0, 2, 2));
        assert!(
            !cpuid.as_slice().iter().any(|l| matches!(l.function, 0x1f | 0x8000_0026)),
            "the host's topology is gone"
        );
        assert_eq!(of(&cpuid, 0x8000_0001, 0).2, CMP_LEGACY);
        assert_eq!(of(&cpuid, 0x8000_0008, 0), (0x3030, 0, 0x2002, 0));
        assert_eq!(of(&cpuid, 0x8000_001e, 0), (2, 2, 0, 0));
        assert_eq!(Processor::new(&host, 1, true).address_limit(), 1 << 48);
    }

    #[test]
    fn what_is_hidden_depends_on_the_vendor() {
        for (vendor, capabilities) in [(b"Auth", 0), (b"Hygo", 0), (b"Genu", 1 << 29)] {
            let host = CpuId::from_entries(&[
                leaf(0, 0, 7, u32::from_le_bytes(*vendor), 0, 0),
                leaf(7, 0, 0, 1 << 2 | 1, 0, 1 << 29),
            ]);
            let cpuid = Processor::new(&host.unwrap(), 1, true).vcpu(0);
            assert_eq!(of(&cpuid, 7, 0), (0, 1, 0, capabilities), "{}", vendor.escape_ascii());
        }
    }

    #[test]
    fn one_vcpu_is_no_multiprocessor() {
        let host =
            CpuId::from_entries(&[leaf(1, 0, 0, 0, TSC_DEADLINE, HTT), leaf(0, 0, 1, 0, 0, 0)]).unwrap();
        let cpuid = Processor::new(&host, 1, false).vcpu(0);
        assert_eq!(of(&cpuid, 1, 0), (0, 0x0001_0000, HYPERVISOR, 0), "no timer that the APIC lacks");
        assert_eq!(cpuid.as_slice().len(), 2, "no leaf past the highest that leaf 0 names");
        assert_eq!(Processor::new(&host, 1, false).address_limit(), 1 << 36);
    }

    #[test]
    fn a_count_that_has_no_room_leaves_the_apic_id_alone() {
        let host = CpuId::from_entries(&[leaf(1, 0, 0, 0x0710_0800, 0, 0)]).unwrap();
        // Leaf 1 has a byte for the number of logical processors, and their next power of two is 256.
        let cpuid = Processor::new(&host, 200, true).vcpu(4);
        assert_eq!(of(&cpuid, 1, 0).1, 0x04ff_0800);
    }
}
