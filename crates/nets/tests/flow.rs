//! The flow generator: its block against Track2Act's, and what must hold for the whole network.
#![allow(clippy::unwrap_used)]

use candle_core::{Device, Tensor};
use efference_geometry::{Camera, CameraAxes, Intrinsics, Isometry3, Point3, Vector3};
use efference_nets::flow::{FlowBatch, FlowNetConfig, PointFlowNet, QueryCode, QueryInput, conformance};
use efference_nets::{Init, ParamStore};
use efference_objectives::conformance::run_with;
use efference_ops::{Grads, value_and_grad};

#[test]
fn the_block_agrees_with_the_reference() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/flow3d_action.json");
    let results = run_with(path.as_ref(), &|question| {
        let heads = question.params.get("heads")?.as_u64()? as usize;
        conformance::replay(question.function, heads, &question.numbers())
    })
    .unwrap();
    let case = results.iter().find(|result| result.case == "dit_block_and_final").unwrap();
    assert!(case.passed(), "{case:#?}");
}

fn camera() -> Camera {
    let (eye, at) = (Point3::new(0.8, 0.3, 0.7), Point3::new(0.0, 0.0, 0.1));
    let pose = Isometry3::face_towards(&eye, &at, &-Vector3::z());
    Camera::new(Intrinsics::from_fovy_deg(50.0, 32, 32).unwrap(), pose, CameraAxes::OpenCv)
}

fn config() -> FlowNetConfig {
    FlowNetConfig {
        width: 32,
        layers: 2,
        heads: 2,
        frames: 3,
        image_size: 32,
        goal: true,
        ..FlowNetConfig::default()
    }
}

/// A network none of whose weights is zero, as after some training.
fn network() -> (ParamStore, PointFlowNet) {
    let mut params = ParamStore::new(5, Device::Cpu);
    // What starts at zero is drawn instead: the names exist before the network asks for them.
    let d = config().width;
    for i in 0..config().layers {
        let mut blocks = params.root();
        let mut blocks = blocks.pp("blocks");
        let mut block = blocks.pp(&i.to_string());
        block.pp("modulation").get("weight", &[6 * d, d], Init::Normal(0.3)).unwrap();
    }
    // 4 numbers per point and frame of its own, 4 times 3 per frame of the whole object; 3 frames.
    for (last, outputs) in [("last", 12), ("last_whole", 36)] {
        let mut root = params.root();
        let mut last = root.pp(last);
        last.pp("linear").get("weight", &[outputs, d], Init::Normal(0.3)).unwrap();
        last.pp("modulation").get("weight", &[2 * d, d], Init::Normal(0.3)).unwrap();
    }
    let net = PointFlowNet::new(&mut params.root(), &config()).unwrap();
    (params, net)
}

fn code(points: &[Point3<f64>], instruction: &str) -> QueryCode {
    let rgb: Vec<u8> = (0..32 * 32 * 3).map(|i| (i * 7 % 251) as u8).collect();
    let depth = vec![0.8f32; 32 * 32];
    let camera = camera();
    let goal = Some(Point3::new(0.1, 0.1, 0.2));
    let picture = Some((rgb.as_slice(), depth.as_slice()));
    let input = QueryInput { camera: &camera, picture, points, instruction, goal, metric: true };
    QueryCode::new(&config(), &input).unwrap()
}

fn points(count: usize) -> Vec<Point3<f64>> {
    (0..count).map(|i| Point3::new(0.02 * i as f64, 0.01 * (i * i % 5) as f64, 0.1)).collect()
}

fn wave(dims: &[usize], seed: f64) -> Tensor {
    let count: usize = dims.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i as f64 + 1.3) * seed).sin() as f32).collect();
    Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
}

fn numbers(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn permuting_points_permutes_the_answer_and_copies_agree() {
    let (_, net) = network();
    let (order, points) = ([3, 0, 4, 2, 1], points(5));
    let shuffled: Vec<Point3<f64>> = order.iter().map(|&i| points[i]).collect();
    let (noisy, time) = (wave(&[1, 5, 9], 0.7), wave(&[1, 256], 0.2));
    let ids = Tensor::new(&order.map(|i| i as u32), &Device::Cpu).unwrap();
    let answer = |points: &[Point3<f64>], noisy: &Tensor| {
        let batch = FlowBatch::new(&config(), &[code(points, "lift the cup")], &Device::Cpu).unwrap();
        let context = net.context(&batch).unwrap();
        let out = net.forward(&context, noisy, &time).unwrap();
        let twice = net
            .forward(
                &context.repeat(2).unwrap(),
                &noisy.repeat((2, 1, 1)).unwrap(),
                &time.repeat((2, 1)).unwrap(),
            )
            .unwrap();
        let half = twice.motion.narrow(0, 1, 1).unwrap();
        assert_eq!(numbers(&half), numbers(&out.motion), "a copy in a batch is the same, bit for bit");
        (out.motion, out.visibility)
    };
    let (a, b) = (answer(&points, &noisy), answer(&shuffled, &noisy.index_select(&ids, 1).unwrap()));
    for (a, b) in [(a.0, b.0), (a.1, b.1)] {
        let a = numbers(&a.index_select(&ids, 1).unwrap());
        let worst = a.iter().zip(numbers(&b)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(a.iter().any(|x| x.abs() > 0.1), "the answer is not flat");
        assert!(worst < 2e-5, "{worst}");
    }
}

#[test]
fn the_words_matter_and_guidance_has_a_branch_without_them() {
    let (_, net) = network();
    let answer = |instruction: &str, forget: bool| {
        let mut code = code(&points(4), instruction);
        if forget {
            code.drop_text();
        }
        let batch = FlowBatch::new(&config(), &[code], &Device::Cpu).unwrap();
        let context = net.context(&batch).unwrap();
        let (noisy, time) = (wave(&[1, 4, 9], 0.7), wave(&[1, 256], 0.2));
        let without = net.forward(&context.without_text().unwrap(), &noisy, &time).unwrap();
        (numbers(&net.forward(&context, &noisy, &time).unwrap().motion), numbers(&without.motion))
    };
    let (a, b, none) =
        (answer("pour the tea", false), answer("open the drawer", false), answer("pour", true));
    assert_ne!(a.0, b.0);
    assert_eq!(a.1, b.1);
    assert_eq!(none.0, a.1, "an instruction that was dropped is the branch without text");
}

#[test]
fn the_gradient_reaches_every_weight() {
    let (params, net) = network();
    let batch =
        FlowBatch::new(&config(), &[code(&points(4), "lift"), code(&points(4), "hang it")], &Device::Cpu);
    let batch = batch.unwrap();
    let (_, found) = value_and_grad(|| {
        let context = net.context(&batch)?;
        let out = net.forward(&context, &wave(&[2, 4, 9], 0.7), &wave(&[2, 256], 0.2))?;
        Ok::<_, efference_nets::Error>((out.motion.sqr()?.mean_all()? + out.visibility.sqr()?.mean_all()?)?)
    })
    .unwrap();
    let grads = Grads::from_store(found, params.trainable()).unwrap();
    let names: Vec<&str> = params.trainable().map(|(name, _)| name).collect();
    // A constant added to every key changes no softmax.
    let unreached = grads.unreached(names.iter().copied().filter(|n| !n.ends_with("key.bias"))).unwrap();
    assert!(unreached.is_empty(), "{unreached:?}");
}

#[test]
fn batches_and_shapes_that_do_not_fit_are_refused() {
    let (_, net) = network();
    let codes = [code(&points(4), "lift"), code(&points(5), "lift")];
    assert!(
        FlowBatch::new(&config(), &codes, &Device::Cpu).unwrap_err().to_string().contains("equally many")
    );
    assert!(FlowBatch::new(&config(), &[], &Device::Cpu).is_err());
    let context = net.context(&FlowBatch::new(&config(), &codes[..1], &Device::Cpu).unwrap()).unwrap();
    let time = wave(&[1, 256], 0.2);
    assert!(net.forward(&context, &wave(&[1, 4, 8], 0.1), &time).unwrap_err().to_string().contains("noisy"));
    assert!(net.forward(&context, &wave(&[1, 4, 9], 0.1), &wave(&[1, 8], 0.1)).is_err());
    let blind = FlowNetConfig { picture: false, ..config() };
    let batch = FlowBatch::new(&blind, &codes[..1], &Device::Cpu).unwrap();
    assert!(net.context(&batch).unwrap_err().to_string().contains("picture"));
}

#[test]
fn small_sizes_have_as_many_parameters_as_documented() {
    for (name, millions) in [("xs", 1.0), ("s", 1.7)] {
        let mut params = ParamStore::new(0, Device::Cpu);
        PointFlowNet::new(&mut params.root(), &FlowNetConfig::preset(name).unwrap()).unwrap();
        let got = params.count() as f64 / 1e6;
        assert!((got - millions).abs() < 0.05, "{name}: {got}");
    }
}
