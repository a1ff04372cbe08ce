use candle_core::{DType, Device, Tensor};
use efference_ops::{self as ops, AxialRotary, RotaryTable};
use serde_json::Value;

use crate::harness::{Arg, CASES, Case, Lie, Random, flat, for_seeds, pick};
use crate::reference as r;

#[test]
fn one_axis() {
    for_seeds(CASES, |seed, random| {
        let (b, h, t) = (pick(random, &[1, 2]), pick(random, &[1, 3]), pick(random, &[1, 2, 5, 17]));
        let (d, offset, base) = (pick(random, &[2, 4, 16, 34, 66]), random.below(9), 10_000.0f64);
        let table = RotaryTable::new(d, t + offset, base).unwrap();
        let mut case = Case::new(
            "rotary",
            vec![Arg::random(&[b, h, t, d], 1.0, random)],
            |a| Ok(vec![table.apply(&a[0], offset)?]),
            |a| {
                let angle = |token: usize, i: usize| {
                    (token % t + offset) as f64 * base.powf(-2.0 * i as f64 / d as f64)
                };
                vec![r::rotate_half(&a[0], d, &angle)]
            },
        );
        case.floor[1] = ANGLE;
        Lie::all().into_iter().for_each(|lie| case.check(lie, seed));
    });
}

#[test]
fn one_axis_on_tokens() {
    for_seeds(CASES, |seed, random| {
        let (b, h, t) = (pick(random, &[1, 2]), pick(random, &[1, 3]), pick(random, &[1, 2, 5, 17]));
        let (d, offset, base) = (pick(random, &[2, 4, 16, 34]), random.below(9), 10_000.0f64);
        let table = RotaryTable::new(d, t + offset, base).unwrap();
        let mut case = Case::new(
            "rotary on tokens",
            vec![Arg::random(&[b, t, h * d], 1.0, random)],
            |a| Ok(vec![table.apply_tokens(&a[0], offset)?]),
            |a| {
                let angle = |row: usize, i: usize| {
                    (row / h % t + offset) as f64 * base.powf(-2.0 * i as f64 / d as f64)
                };
                vec![r::rotate_half(&a[0], d, &angle)]
            },
        );
        case.floor[1] = ANGLE;
        case.check(pick(random, &Lie::all()), seed);
    });
}

/// In f64 an angle of some hundreds is only known to this; f32 rounds what was computed in f64.
const ANGLE: f64 = 1e-12;

/// Positions [3, B, T].
fn positions(b: usize, t: usize, random: &mut Random) -> Vec<i64> {
    (0..3 * b * t).map(|_| random.below(300) as i64).collect()
}

#[test]
fn several_axes() {
    for_seeds(CASES, |seed, random| {
        let (b, h, t) = (pick(random, &[1, 2]), pick(random, &[1, 3]), pick(random, &[1, 2, 9]));
        let shared = random.below(2) == 0; // one set of positions for every sample
        let pb = if shared { 1 } else { b };
        let at = positions(pb, t, random);
        let tensor = Tensor::from_vec(at.clone(), (3, pb, t), &Device::Cpu).unwrap();
        // x is [b, h, t]: which position a token has
        let position = |axis: usize, token: usize| {
            let sample = if shared { 0 } else { token / (h * t) };
            at[(axis * pb + sample) * t + token % t] as f64
        };
        let base = 10_000.0f64;
        let sections = pick(random, &[[2, 1, 1], [2, 3, 3], [16, 24, 24], [0, 3, 0], [1, 0, 0]]);
        let half: usize = sections.iter().sum();
        let contiguous = AxialRotary::sections(2 * half, base, sections).unwrap().at(&tensor).unwrap();
        let mut case = Case::new(
            "rotary of sections",
            vec![Arg::random(&[b, h, t, 2 * half], 1.0, random)],
            |a| Ok(vec![contiguous.apply(&a[0])?]),
            |a| {
                let angle = |token: usize, j: usize| {
                    let mut axis = 0;
                    let mut end = sections[0];
                    while j >= end {
                        axis += 1;
                        end += sections[axis];
                    }
                    position(axis, token) / base.powf(j as f64 / half as f64)
                };
                vec![r::rotate_half(&a[0], 2 * half, &angle)]
            },
        );
        case.floor[1] = ANGLE;
        case.check(pick(random, &Lie::all()), seed);

        let sections = pick(random, &[[24, 20, 20], [2, 1, 1], [2, 2, 1]]);
        let half: usize = sections.iter().sum();
        let turns = AxialRotary::interleaved(2 * half, base, sections).unwrap().at(&tensor).unwrap();
        // time, row, column, time, row, column, ... as long as there is any, then time
        let order: Vec<usize> = (0..half).map(|j| if j / 3 < sections[j % 3] { j % 3 } else { 0 }).collect();
        let mut case = Case::new(
            "interleaved rotary",
            vec![Arg::random(&[b, h, t, 2 * half], 1.0, random)],
            |a| Ok(vec![turns.apply(&a[0])?]),
            |a| {
                let angle =
                    |token: usize, j: usize| position(order[j], token) / base.powf(j as f64 / half as f64);
                vec![r::rotate_half(&a[0], 2 * half, &angle)]
            },
        );
        case.floor[1] = ANGLE;
        case.check(pick(random, &Lie::all()), seed);

        let d = pick(random, &[4, 8, 80]);
        let image = AxialRotary::image(d, base).unwrap().at(&tensor).unwrap();
        let mut case = Case::new(
            "image rotary",
            vec![Arg::random(&[b, h, t, d], 1.0, random)],
            |a| Ok(vec![image.apply(&a[0])?]),
            |a| {
                let angle = |token: usize, j: usize| {
                    let (axis, j) = if j < d / 4 { (1, j) } else { (2, j - d / 4) };
                    position(axis, token) / base.powf(4.0 * j as f64 / d as f64)
                };
                vec![r::rotate_half(&a[0], d, &angle)]
            },
        );
        case.floor[1] = ANGLE;
        case.check(pick(random, &Lie::all()), seed);

        let d = pick(random, &[6, 8, 16, 24, 64, 80]);
        let video = AxialRotary::video(d, base).unwrap().at(&tensor).unwrap();
        let mut case = Case::new(
            "video rotary",
            vec![Arg::random(&[b, h, t, d], 1.0, random)],
            |a| Ok(vec![video.apply(&a[0])?]),
            |a| {
                let part = 2 * ((d / 3) / 2);
                let angle = |token: usize, i: usize| {
                    (i < 3 * part).then(|| {
                        let j = (i % part) % (part / 2);
                        position(i / part, token) * base.powf(-(j as f64) / (part / 2) as f64)
                    })
                };
                vec![r::rotate_neighbours(&a[0], d, &angle)]
            },
        );
        case.floor[1] = ANGLE;
        case.check(pick(random, &Lie::all()), seed);
    });
}

/// With equal positions on all axes the sections do not matter: the table's rotation, bit for bit.
#[test]
fn equal_positions_are_one_axis() {
    let (d, t, base) = (128, 40, 1e6);
    let x = Arg::random(&[2, 3, t, d], 1.0, &mut Random::new(1));
    let x = Tensor::from_vec(x.values, x.dims, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
    let line: Vec<u32> = (0..3 * t as u32).map(|i| i % t as u32 + 5).collect();
    let line = Tensor::from_vec(line, (3, 1, t), &Device::Cpu).unwrap();
    let table = flat(&RotaryTable::new(d, t + 5, base).unwrap().apply(&x, 5).unwrap());
    for rotary in [
        AxialRotary::sections(d, base, [16, 24, 24]).unwrap(),
        AxialRotary::interleaved(d, base, [24, 20, 20]).unwrap(),
    ] {
        assert_eq!(flat(&rotary.at(&line).unwrap().apply(&x).unwrap()), table);
    }
}

fn golden(file: &str) -> Vec<Value> {
    let path = format!("{}/../../tests/golden/{file}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let file: Value = serde_json::from_str(&text).unwrap();
    file["cases"].as_array().unwrap().clone()
}

fn tensor(value: &Value) -> Tensor {
    let numbers = |key: &str| -> Vec<f64> {
        value[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    };
    let shape: Vec<usize> = numbers("shape").iter().map(|&n| n as usize).collect();
    Tensor::from_vec(numbers("data"), shape, &Device::Cpu).unwrap()
}

fn close(got: &Tensor, wanted: &Value) {
    let wanted = tensor(wanted);
    assert_eq!(got.dims(), wanted.dims());
    let gap = flat(got).iter().zip(flat(&wanted)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(gap < 2e-6, "{gap}"); // the files hold f32 results
}

/// Vectors made with Hugging Face's implementation.
#[test]
fn qwen2_5_vl_vectors() {
    let cases = golden("model_qwen2_5_vl");
    let case = cases.iter().find(|case| case["name"] == "mrope_apply").unwrap();
    let positions = tensor(&case["inputs"]["position_ids"]).to_dtype(DType::I64).unwrap();
    let params = &case["params"];
    let section = |i: usize| params["mrope_section"][i].as_u64().unwrap() as usize;
    let (d, base) = (params["head_dim"].as_u64().unwrap() as usize, params["rope_theta"].as_f64().unwrap());
    let rotary = AxialRotary::sections(d, base, [section(0), section(1), section(2)]).unwrap();
    let got = rotary.at(&positions).unwrap().apply(&tensor(&case["inputs"]["q"])).unwrap();
    close(&got, &case["outputs"]["q_rotated"]);
}

/// The file rotates one axis block; in a head of three blocks the other two stay when their position is 0.
#[test]
fn vjepa2_vectors() {
    let mut seen = 0;
    for case in golden("model_vjepa2").iter().filter(|case| case["function"] == "rotate") {
        let x = tensor(&case["inputs"]["x"]); // [1, 2, 5, a]
        let pos = tensor(&case["inputs"]["pos"]).to_dtype(DType::I64).unwrap();
        let (t, a) = (x.dims()[2], x.dims()[3]);
        let zeros = pos.zeros_like().unwrap();
        for axis in 0..3 {
            let mut positions = [&zeros, &zeros, &zeros];
            positions[axis] = &pos;
            let positions = Tensor::stack(&positions, 0).unwrap().reshape((3, 1, t)).unwrap();
            let whole = Tensor::cat(&[&x, &x, &x], 3).unwrap();
            let angles = AxialRotary::video(3 * a, 10_000.0).unwrap().at(&positions).unwrap();
            let turned = angles.apply(&whole).unwrap();
            close(&turned.narrow(3, axis * a, a).unwrap(), &case["outputs"]["y"]);
            let other = (axis + 1) % 3 * a;
            assert_eq!(flat(&turned.narrow(3, other, a).unwrap()), flat(&x));
        }
        seen += 1;
    }
    assert!(seen >= 2);
}

#[test]
fn a_grid_is_time_then_row_then_column() {
    let grid = AxialRotary::grid(2, 2, 3).unwrap().to_vec3::<u32>().unwrap();
    assert_eq!(grid[0][0], [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]);
    assert_eq!(grid[1][0], [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1]);
    assert_eq!(grid[2][0], [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]);
    assert!(AxialRotary::grid(1 << 20, 1 << 20, 1).is_err());
    assert!(ops::AxialRotary::grid(0, 1, 1).is_err());
}
