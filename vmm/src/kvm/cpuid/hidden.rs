//! What KVM says that it supports and this machine has not: each with its reason.
//!
//! KVM answers for itself (KVM_GET_SUPPORTED_CPUID), and takes for granted that its caller does the rest: opens the enclaves' memory,
//! asks for the tiles' permission, launches the guest encrypted, wants counters. What nobody does, no guest is told of. The table was
//! made by going through all leaves beside what Firecracker and Cloud Hypervisor clear.
//!
//! Left as KVM has it, though others clear it: nested virtualization (1.ECX VMX, 0x8000_0001.ECX SVM: KVM does all of it, and
//! the host's administrator decides, `kvm_amd.nested`), WAITPKG (7.ECX bit 5: KVM bounds the wait), MPX and Intel PT (7.EBX bits 14
//! and 25: shown where the host's administrator has it on), and the paravirtual features (0x4000_0001: all in KVM). Leaves that
//! KVM itself leaves empty (5, 0xf, 0x10, 0x1b) need no row.

use kvm_bindings::kvm_cpuid_entry2;

/// A row: bits that are cleared in the registers EAX, EBX, ECX and EDX of a leaf.
struct Hidden {
    leaf: u32,
    /// Of this index, or of each.
    index: Option<u32>,
    bits: [u32; 4],
    /// On AMD's processors only.
    amd: bool,
    /// Why.
    #[allow(dead_code)] // for who reads the table
    why: &'static str,
}

const ALL: [u32; 4] = [u32::MAX; 4];

const fn eax(bits: u32) -> [u32; 4] {
    [bits, 0, 0, 0]
}

const fn ebx(bits: u32) -> [u32; 4] {
    [0, bits, 0, 0]
}

const fn ecx(bits: u32) -> [u32; 4] {
    [0, 0, bits, 0]
}

const fn edx(bits: u32) -> [u32; 4] {
    [0, 0, 0, bits]
}

const fn row(leaf: u32, index: Option<u32>, bits: [u32; 4], why: &'static str) -> Hidden {
    Hidden { leaf, index, bits, amd: false, why }
}

const PMU: &str =
    "no performance counters: the vPMU is off, for each counter would be multiplexed with the host's";
const SGX: &str = "no enclaves: nobody gives the guest memory of /dev/sgx_vepc";
const AMX: &str = "no tiles: nobody asks the host for them (ARCH_REQ_XCOMP_GUEST_PERM)";
const SEV: &str = "no encrypted guest, and no secure processor in it that would start one";

const HIDDEN: &[Hidden] = &[
    row(0x1, None, ecx(1 << 2 | 1 << 15), PMU), // DTES64, PDCM
    row(0x1, None, edx(1 << 21), PMU),          // DS
    row(0x7, Some(0), edx(1 << 19), PMU),       // ARCH_LBR
    row(0xa, None, ALL, PMU),                   // architectural counters
    row(0x1c, None, ALL, PMU),                  // last branch records
    row(0x23, None, ALL, PMU),                  // architectural counters, extended
    row(0x8000_0001, None, ecx(1 << 10 | 1 << 23 | 1 << 24 | 1 << 28), PMU), // IBS, PERFCTR_CORE, _NB, _LLC
    row(0x8000_001b, None, ALL, PMU),           // instruction-based sampling
    row(0x8000_0022, None, ALL, PMU),           // PerfMonV2, LBRv2
    row(
        0x6,
        None,
        [!(1 << 2), u32::MAX, u32::MAX, u32::MAX],
        "no power management of the host's: of all, the APIC timer that always runs (ARAT)",
    ),
    row(0x7, Some(0), ebx(1 << 2), SGX),  // SGX
    row(0x7, Some(0), ecx(1 << 30), SGX), // SGX_LC
    row(0x7, Some(0), edx(1 << 1), SGX),  // SGX_KEYS
    row(0x12, None, ALL, SGX),
    row(0x7, Some(0), edx(1 << 22 | 1 << 24 | 1 << 25), AMX), // AMX_BF16, AMX_TILE, AMX_INT8
    row(0x7, Some(1), eax(1 << 21), AMX),                     // AMX_FP16
    row(0x7, Some(1), edx(1 << 8), AMX),                      // AMX_COMPLEX
    row(0xd, Some(0), eax(1 << 17 | 1 << 18), AMX),           // the state of their registers
    row(0xd, Some(1), eax(1 << 4), AMX),                      // XFD, which is for them alone
    row(0xd, Some(17), ALL, AMX),
    row(0xd, Some(18), ALL, AMX),
    row(0x1d, None, ALL, AMX),
    row(0x1e, None, ALL, AMX),
    row(0x8000_001f, None, ALL, SEV),
    Hidden {
        amd: true,
        ..row(
            0x7,
            Some(0),
            edx(1 << 29),
            "IA32_ARCH_CAPABILITIES: no such processor has it, and some guests believe that none has",
        )
    },
];

/// Clears what is hidden of a leaf, on an AMD processor or on another.
pub(super) fn hide(leaf: &mut kvm_cpuid_entry2, amd: bool) {
    let rows = HIDDEN.iter().filter(|row| row.leaf == leaf.function && (amd || !row.amd));
    for row in rows.filter(|row| row.index.is_none_or(|index| index == leaf.index)) {
        let registers = [&mut leaf.eax, &mut leaf.ebx, &mut leaf.ecx, &mut leaf.edx];
        for (register, bits) in registers.into_iter().zip(row.bits) {
            *register &= !bits;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hidden(function: u32, index: u32, amd: bool) -> [u32; 4] {
        let [eax, ebx, ecx, edx] = ALL;
        let mut leaf = kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() };
        hide(&mut leaf, amd);
        [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx].map(|left| !left)
    }

    #[test]
    fn what_is_not_backed_is_not_shown() {
        for (function, index, bits) in [
            (0x1, 0, [0, 0, 0x8004, 0x20_0000]),
            (0x6, 0, [!4, u32::MAX, u32::MAX, u32::MAX]),
            (0x7, 0, [0, 4, 0x4000_0000, 0x0348_0002]),
            (0x7, 1, [0x20_0000, 0, 0, 0x100]),
            (0xd, 0, [0x6_0000, 0, 0, 0]),
            (0xd, 1, [0x10, 0, 0, 0]),
            (0xd, 9, [0; 4]),
            (0xd, 17, ALL),
            (0xd, 18, ALL),
            (0x8000_0001, 0, [0, 0, 0x1180_0400, 0]),
        ] {
            assert_eq!(hidden(function, index, false), bits, "{function:#x}.{index}");
        }
        for function in [0xa, 0x12, 0x1c, 0x1d, 0x1e, 0x23, 0x8000_001b, 0x8000_001f, 0x8000_0022] {
            for index in 0..4 {
                assert_eq!(hidden(function, index, true), ALL, "{function:#x}.{index}");
            }
        }
        for function in [0, 2, 4, 0x14, 0x24, 0x4000_0001, 0x8000_0000, 0x8000_0008, 0x8000_000a, 0x8000_0021]
        {
            assert_eq!(hidden(function, 0, true), [0; 4], "{function:#x}");
        }
        assert_eq!(hidden(0x7, 0, true)[3], 0x2348_0002);
    }

    #[test]
    fn no_row_is_there_twice() {
        let mut seen: Vec<_> = HIDDEN.iter().map(|row| (row.leaf, row.index, row.amd, row.bits)).collect();
        let rows = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), rows);
        assert!(HIDDEN.iter().all(|row| !row.why.is_empty() && row.bits != [0; 4]));
    }
}
