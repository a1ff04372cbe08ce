//! The emulation itself: faults are found, arguments checked, rounding is that of IEEE.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Call, Random};
use efference_ops_emulation::{Arg, Order, kernels};
use half::{bf16, f16};

fn problem(name: &str, shared: usize) -> String {
    let call = Call::new(name).output::<f32>(64).block(64).shared(shared);
    call.problem().unwrap_or_else(|| panic!("{name} ran without a complaint"))
}

#[test]
fn faults_are_found() {
    assert!(problem("fault_barrier", 0).contains("__syncthreads: 40 of 64 threads wait, 24 have ended"));
    let lanes = problem("fault_lanes", 0);
    assert!(lanes.contains("warp 0: lanes fffffff7 wait in __shfl_xor_sync"), "{lanes}");
    assert!(problem("fault_mixed", 0).contains("while other lanes of the warp are in"));
    assert!(problem("fault_shared", 0).contains("a write outside shared memory (a piece of 128 bytes)"));
    assert!(problem("fault_dynamic", 128).contains("a write outside shared memory"));
    let behind = Call::new("fault_behind").output::<f32>(64).i32(64).block(32).problem();
    assert!(behind.unwrap().contains("a write behind the buffer of 256 bytes"));
    let before = Call::new("fault_behind").output::<f32>(64).arg(Arg::I32(-1)).block(32).problem();
    assert!(before.unwrap().contains("a write before the buffer"));
}

#[test]
fn orders_uncover_races() {
    let race = Call::new("fault_race").output::<f32>(64).block(64);
    assert_ne!(race.bytes(Order::Forward), race.bytes(Order::Backward));
    let x = [5.0f32; 64];
    for name in ["fault_wait", "fault_overwrite"] {
        let copy = Call::new(name).input(&x).output::<f32>(64).block(64);
        assert_ne!(copy.bytes(Order::Forward), copy.bytes(Order::Backward), "{name}");
    }
    let blocks = Call::new("fault_blocks").output::<f32>(4).block(32).grid(4, 1, 1);
    assert_ne!(blocks.bytes(Order::Forward), blocks.bytes(Order::Backward));
}

#[test]
fn wrong_calls_are_refused() {
    let fill = || Call::new("fill_f32").output::<f32>(8);
    assert!(Call::new("fill_f8").problem().unwrap().contains("no such kernel"));
    assert!(
        fill().i32(8).f32(1.0).problem().unwrap().contains("arguments are `pif`, the kernel takes `plf`")
    );
    assert!(fill().i64(8).f32(1.0).block(48).problem().unwrap().contains("whole warps"));
    assert!(fill().i64(8).f32(1.0).grid(1, 65536, 1).problem().unwrap().contains("a grid"));
    assert!(fill().i64(8).f32(1.0).shared(300 << 10).problem().unwrap().contains("227 KiB"));
    assert!(fill().i64(8).f32(1.0).problem().is_none());
}

#[test]
fn every_kernel_is_in_the_contract() {
    let contract = include_str!("../../kernels/README.md");
    for (name, types) in kernels().iter().filter(|(name, _)| !name.starts_with("fault_")) {
        assert!(!types.contains('?'), "{name} takes a type that no launch can give: {types}");
        let base = ["_f32", "_f16", "_bf16"].iter().fold(name.clone(), |name, kind| name.replace(kind, ""));
        let base =
            base.split("_plain").next().unwrap_or_default().trim_end_matches(|c: char| c.is_ascii_digit());
        let base = base.trim_end_matches("_d");
        let known = contract.contains(&format!("`{base}`")) || contract.contains(&format!("`{base}_"));
        assert!(known, "`{base}` ({name}) is not described in kernels/README.md");
    }
}

/// All 2^32 numbers would take minutes: those near every boundary between two half numbers, and random ones.
#[test]
fn conversions_round_to_nearest_even() {
    let mut numbers =
        vec![0.0f32, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MIN_POSITIVE, f32::MAX, 1e-45];
    for bits in 0..0x7c00u16 {
        let (low, high) = (f16::from_bits(bits).to_f32(), f16::from_bits(bits + 1).to_f32());
        let middle = if high.is_finite() { (low + high) / 2.0 } else { 65520.0 };
        for x in [low, middle, f32::from_bits(middle.to_bits() - 1), f32::from_bits(middle.to_bits() + 1)] {
            numbers.extend([x, -x]);
        }
    }
    let mut random = Random::new(1);
    let finite = std::iter::from_fn(|| Some(f32::from_bits(random.bits() as u32))).filter(|x| !x.is_nan());
    numbers.extend(finite.take(20_000));
    let n = numbers.len();
    let cast =
        |to: &str| Call::new(format!("cast_f32_{to}")).input(&numbers).output::<u16>(n).i64(n).each(n).run();
    let half: Vec<u16> = cast("f16").take();
    let brain: Vec<u16> = cast("bf16").take();
    for (i, &x) in numbers.iter().enumerate() {
        assert_eq!(half[i], f16::from_f32(x).to_bits(), "{x:e} to f16");
        assert_eq!(brain[i], bf16::from_f32(x).to_bits(), "{x:e} to bf16");
    }
    // and back, all of them
    let all: Vec<u16> = (0..=u16::MAX).collect();
    let back = |from: &str| {
        let call = Call::new(format!("cast_{from}_f32")).input(&all).output::<f32>(all.len());
        call.i64(all.len()).each(all.len()).run().take::<f32>()
    };
    for ((&bits, half), brain) in all.iter().zip(back("f16")).zip(back("bf16")) {
        let (want, got) = (f16::from_bits(bits).to_f32(), half);
        assert!(want.to_bits() == got.to_bits() || want.is_nan() && got.is_nan(), "f16 {bits:#x}: {got}");
        let (want, got) = (bf16::from_bits(bits).to_f32(), brain);
        assert!(want.to_bits() == got.to_bits() || want.is_nan() && got.is_nan(), "bf16 {bits:#x}: {got}");
    }
}
