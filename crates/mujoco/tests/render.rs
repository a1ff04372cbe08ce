//! Headless drawing: the pictures are those of the Python bindings, upright, with true depth and geom ids.
#![allow(clippy::unwrap_used)]

use efference_mujoco::{Camera, Data, Error, Model, RenderQuality, Renderer};
use std::sync::Arc;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
const WIDTH: usize = 64;
const HEIGHT: usize = 48;

fn scene() -> (Arc<Model>, Data) {
    let model = Arc::new(Model::from_xml_file(format!("{FIXTURES}/scene.xml")).unwrap());
    let mut data = Data::new(&model).unwrap();
    data.reset_to_keyframe(0).unwrap();
    data.forward().unwrap();
    (model, data)
}

fn rgb(renderer: &mut Renderer, data: &Data, camera: impl Into<Camera>) -> Vec<u8> {
    let (width, height) = renderer.size();
    let mut out = vec![0; 3 * width * height];
    renderer.render_rgb(data, camera, &mut out).unwrap();
    out
}

fn pixel(image: &[u8], width: usize, x: usize, y: usize) -> [u8; 3] {
    let at = 3 * (y * width + x);
    [image[at], image[at + 1], image[at + 2]]
}

fn picture(name: &str) -> image::DynamicImage {
    image::open(format!("{FIXTURES}/{name}.png")).unwrap()
}

/// A red wall 2 m ahead, filling the lower half of a camera that looks along +x with +z up; a blue post in the upper
/// left quarter at 1 m.
const WALL: &str = r#"<mujoco>
  <statistic extent="1" center="0 0 0"/>
  <visual><map znear="0.05" zfar="10"/><headlight ambient="1 1 1" diffuse="0 0 0" specular="0 0 0"/></visual>
  <worldbody>
    <camera name="eye" pos="0 0 0" xyaxes="0 -1 0 0 0 1" fovy="90"/>
    <geom name="wall" type="box" size="0.5 5 2.5" pos="2.5 0 -2.5" rgba="1 0 0 1"/>
    <geom name="post" type="box" size="0.1 0.25 0.25" pos="1.1 0.5 0.5" rgba="0 0 1 1"/>
    <site name="dot" type="sphere" size="0.1" pos="1 -0.5 0.5" rgba="0 1 0 1"/>
  </worldbody>
</mujoco>"#;

fn wall() -> (Arc<Model>, Data) {
    let model = Arc::new(Model::from_xml_string(WALL).unwrap());
    let data = Data::new(&model).unwrap();
    (model, data)
}

#[test]
fn pictures_are_those_of_the_python_renderer() {
    let (model, data) = scene();
    let mut renderer = Renderer::new(&model, WIDTH, HEIGHT, RenderQuality::FULL).unwrap();
    println!("{}, {} samples", renderer.driver(), renderer.samples());
    for camera in ["front", "top", "wrist"] {
        let ours = rgb(&mut renderer, &data, model.camera_id(camera).unwrap());
        let python = picture(camera).to_rgb8();
        assert_eq!((python.width() as usize, python.height() as usize), (WIDTH, HEIGHT));
        let differences: Vec<_> = ours.iter().zip(python.as_raw()).map(|(a, b)| a.abs_diff(*b)).collect();
        let mean = differences.iter().map(|d| f64::from(*d)).sum::<f64>() / differences.len() as f64;
        let different = differences.iter().filter(|d| **d > 8).count() as f64 / differences.len() as f64;
        println!(
            "{camera}: mean difference {mean:.4} of 255, {:.2}% of values off by more than 8",
            100.0 * different
        );
        // Drivers round edges differently; another camera, light or flip would differ in most pixels.
        assert!(mean < 1.0 && different < 0.02, "{camera}: mean {mean}, {different}");
    }
}

#[test]
fn depth_and_segmentation_are_those_of_the_python_renderer() {
    let (model, data) = scene();
    let mut renderer = Renderer::new(&model, WIDTH, HEIGHT, RenderQuality::FULL).unwrap();
    let front = model.camera_id("front").unwrap();
    let mut depth = vec![0.0; WIDTH * HEIGHT];
    renderer.render_depth(&data, front, &mut depth).unwrap();
    let python = picture("front_depth_mm").to_luma16();
    let off =
        depth.iter().zip(python.as_raw()).filter(|(a, b)| (*a * 1000.0 - f32::from(**b)).abs() > 2.0).count();
    assert!(off < WIDTH * HEIGHT / 50, "{off} pixels differ by more than 2 mm");

    let mut ids = vec![0; WIDTH * HEIGHT];
    renderer.render_segmentation(&data, front, &mut ids).unwrap();
    let python = picture("front_segmentation").to_luma8();
    let off = ids.iter().zip(python.as_raw()).filter(|(a, b)| **a + 2 != i32::from(**b)).count();
    assert!(off < WIDTH * HEIGHT / 50, "{off} pixels show another geom");
    let cube = model.geom_id("blue_cube").unwrap() as i32;
    assert!(
        ids.contains(&cube) && ids.contains(&-1) && ids.contains(&-2),
        "cube, sky and the mark are in view"
    );
}

#[test]
fn the_top_row_comes_first_and_left_is_left() {
    let (model, data) = wall();
    let (width, height) = (40, 20);
    let mut renderer = Renderer::new(&model, width, height, RenderQuality::FAST).unwrap();
    let eye = model.camera_id("eye").unwrap();
    let image = rgb(&mut renderer, &data, eye);
    for x in 0..width {
        assert_eq!(pixel(&image, width, x, height - 1), [255, 0, 0], "the wall is below, column {x}");
        assert_eq!(pixel(&image, width, x, 0), [0, 0, 0], "nothing above, column {x}");
    }
    // The camera's right is world -y, so the post at +y is left. It spans 14 to 34 degrees to the left and up.
    assert_eq!(pixel(&image, width, 20 - 5, 10 - 5), [0, 0, 255]);
    assert_eq!(pixel(&image, width, 20 + 5, 10 - 5), [0, 255, 0], "the site is right");
}

#[test]
fn depth_is_metres_along_the_axis() {
    let (model, data) = wall();
    let side = 64;
    let mut renderer = Renderer::new(&model, side, side, RenderQuality::FULL).unwrap();
    let mut depth = vec![0.0; side * side];
    renderer.render_depth(&data, model.camera_id("eye").unwrap(), &mut depth).unwrap();
    for x in 1..side - 1 {
        let bottom = depth[(side - 1) * side + x];
        assert!((bottom - 2.0).abs() < 1e-4, "wall at 2 m, got {bottom} in column {x}");
    }
    let post = depth[(side / 4) * side + side / 4];
    assert!((post - 1.0).abs() < 1e-4, "post at 1 m, got {post}");
    assert!((depth[0] - 10.0).abs() < 1e-3, "nothing is as far as can be seen, got {}", depth[0]);
}

#[test]
fn segmentation_names_geoms() {
    let (model, data) = wall();
    let side = 64;
    let mut renderer = Renderer::new(&model, side, side, RenderQuality::FULL).unwrap();
    let mut ids = vec![0; side * side];
    renderer.render_segmentation(&data, model.camera_id("eye").unwrap(), &mut ids).unwrap();
    let at = |x: usize, y: usize| ids[y * side + x];
    assert_eq!(at(32, 60), model.geom_id("wall").unwrap() as i32);
    assert_eq!(at(16, 16), model.geom_id("post").unwrap() as i32);
    assert_eq!(at(48, 16), -2, "a site");
    assert_eq!(at(0, 0), -1, "background");
    renderer.show_site_group(0, false).unwrap();
    renderer.render_segmentation(&data, 0, &mut ids).unwrap();
    assert_eq!(ids[16 * side + 48], -1, "the site is hidden");
}

#[test]
fn drawing_leaves_the_simulation_alone() {
    let (model, mut drawn) = scene();
    let mut undrawn = drawn.try_clone().unwrap();
    let mut renderer = Renderer::new(&model, WIDTH, HEIGHT, RenderQuality::FULL).unwrap();
    for _ in 0..20 {
        rgb(&mut renderer, &drawn, 0);
        drawn.step(5).unwrap();
        undrawn.step(5).unwrap();
    }
    assert_eq!(drawn.state().unwrap(), undrawn.state().unwrap());
}

#[test]
fn several_renderers_on_one_thread_keep_their_own_pictures() {
    let ((scene_model, scene_data), (wall_model, wall_data)) = (scene(), wall());
    let full = RenderQuality::FULL;
    let mut large = Renderer::new(&scene_model, 96, 80, full).unwrap();
    let alone = rgb(&mut large, &scene_data, 0);
    let mut small = Renderer::new(&wall_model, 32, 32, full).unwrap();
    let wall_alone = rgb(&mut small, &wall_data, 0);
    let mut fast = Renderer::new(&scene_model, 96, 80, RenderQuality::FAST).unwrap();
    let fast_alone = rgb(&mut fast, &scene_data, 0);
    assert_ne!(alone, fast_alone, "shadows and smooth edges show");
    for _ in 0..3 {
        assert_eq!(rgb(&mut large, &scene_data, 0), alone);
        assert_eq!(rgb(&mut small, &wall_data, 0), wall_alone);
        assert_eq!(rgb(&mut fast, &scene_data, 0), fast_alone);
    }
    drop(small);
    assert_eq!(rgb(&mut large, &scene_data, 0), alone, "after another renderer is gone");
    assert!(matches!(large.render_rgb(&wall_data, 0, &mut vec![0; 96 * 80 * 3]), Err(Error::OtherModel)));
}

/// Worker threads keep renderers in thread-local storage, which is torn down when the thread ends.
#[test]
fn threads_draw_the_same_bits_and_may_end() {
    use std::cell::RefCell;
    thread_local!(static RENDERER: RefCell<Option<Renderer>> = const { RefCell::new(None) });
    let (model, data) = scene();
    let expected = rgb(&mut Renderer::new(&model, WIDTH, HEIGHT, RenderQuality::FULL).unwrap(), &data, 0);
    for _ in 0..3 {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    let (model, data) = (Arc::clone(&model), data.try_clone().unwrap());
                    scope.spawn(move || {
                        RENDERER.with_borrow_mut(|slot| {
                            let new = || Renderer::new(&model, WIDTH, HEIGHT, RenderQuality::FULL).unwrap();
                            let renderer = slot.get_or_insert_with(new);
                            for _ in 0..10 {
                                rgb(renderer, &data, 1);
                            }
                            rgb(renderer, &data, 0)
                        })
                    })
                })
                .collect();
            for thread in threads {
                assert!(thread.join().unwrap() == expected);
            }
        });
    }
}

#[test]
fn edits_show_in_one_copy_only() {
    let (model, data) = wall();
    let mut changed = data.try_clone().unwrap();
    let own = changed.model_mut().unwrap();
    own.set_geom_rgba(own.geom_id("post").unwrap(), [1.0, 1.0, 0.0, 1.0]);
    let wall_body_of_camera = own.camera_id("eye").unwrap();
    own.set_camera_fovy_deg(wall_body_of_camera, 80.0).unwrap();
    assert!(own.set_camera_fovy_deg(0, 180.0).is_err() && own.set_timestep_secs(f64::NAN).is_err());
    let side = 64;
    let mut renderer = Renderer::new(&model, side, side, RenderQuality::FAST).unwrap();
    let (before, after) = (rgb(&mut renderer, &data, 0), rgb(&mut renderer, &changed, 0));
    assert_eq!(pixel(&before, side, 16, 16), [0, 0, 255]);
    assert_eq!(pixel(&after, side, 16, 16), [255, 255, 0]);
    assert_eq!(model.geom_rgba(model.geom_id("post").unwrap()), [0.0, 0.0, 1.0, 1.0]);

    // Lights, and fixed bodies that are put elsewhere.
    let own = changed.model_mut().unwrap();
    own.set_headlight([0.5; 3], [0.0; 3], [0.0; 3]);
    let after = rgb(&mut renderer, &changed, 0);
    assert_eq!(pixel(&after, side, 32, 63), [128, 0, 0]);
    let post = own_geom(&changed, "post");
    changed.model_mut().unwrap().set_geom_pos(post, [1.1, -0.5, 0.5]);
    changed.kinematics().unwrap();
    assert_eq!(changed.geom_pos(post), [1.1, -0.5, 0.5]);
    assert_eq!(data.geom_pos(post), [1.1, 0.5, 0.5]);
}

fn own_geom(data: &Data, name: &str) -> usize {
    data.model().geom_id(name).unwrap()
}

#[test]
fn the_free_camera_sees_what_a_fixed_one_there_sees() {
    let (model, data) = scene();
    let mut renderer = Renderer::new(&model, WIDTH, HEIGHT, RenderQuality::FAST).unwrap();
    let mut ids = vec![0; WIDTH * HEIGHT];
    let from_above = Camera::Free {
        lookat: data.body_pos(model.body_id("green_cylinder").unwrap()),
        distance_m: 0.3,
        azimuth_deg: 90.0,
        elevation_deg: -90.0,
    };
    renderer.render_segmentation(&data, from_above, &mut ids).unwrap();
    assert_eq!(ids[HEIGHT / 2 * WIDTH + WIDTH / 2], model.geom_id("green_cylinder").unwrap() as i32);
}

#[test]
fn intrinsics_project_to_the_pixel_that_is_drawn() {
    let (model, data) = scene();
    let front = model.camera_id("front").unwrap();
    let (width, height) = (320, 240);
    let mut renderer = Renderer::new(&model, width, height, RenderQuality::FAST).unwrap();
    let mut ids = vec![0; width * height];
    renderer.render_segmentation(&data, front, &mut ids).unwrap();
    let [fx, fy, cx, cy] = model.camera_intrinsics_px(front, width, height);
    let (eye, mat) = (data.camera_pos(front), data.camera_mat(front));
    for name in ["yellow_ball", "goal", "blue_cube"] {
        let geom = model.geom_id(name).unwrap();
        let p = data.geom_pos(geom);
        let local: Vec<f64> =
            (0..3).map(|c| (0..3).map(|r| mat[3 * r + c] * (p[r] - eye[r])).sum()).collect();
        let (x, y) = (cx + fx * local[0] / -local[2], cy - fy * local[1] / -local[2]);
        assert_eq!(ids[y as usize * width + x as usize], geom as i32, "{name} at {x:.1}, {y:.1}");
    }
}

/// A mirror on the floor, one as the lid of a box, and things all around: beside, behind, at the picture's edges, and some
/// of which only the mirror image is seen.
fn hall_of_mirrors(shadow: bool, floor: bool) -> (Arc<Model>, Data) {
    let things: String = (0..120)
        .map(|i| {
            let (a, b) = (f64::from(i) * 0.9, f64::from(i) * 0.37);
            let (x, y, z) = (4.0 * a.sin(), 4.0 * a.cos(), 0.3 + 2.5 * b.sin().abs());
            let kind = ["sphere", "box", "capsule", "ellipsoid"][i as usize % 4];
            format!(
                r#"<geom type="{kind}" size="0.3 0.2 0.1" pos="{x:.3} {y:.3} {z:.3}" euler="{i} {i} 0" rgba="{:.2} {:.2} 0.5 1"/>"#,
                f64::from(i) / 120.0,
                1.0 - f64::from(i) / 120.0
            )
        })
        .collect();
    let xml = format!(
        r#"<mujoco><asset><material name="mirror" rgba="0.4 0.4 0.4 1" reflectance="0.7"/></asset><worldbody>
        <light pos="0 0 6" dir="0.1 0 -1" castshadow="{shadow}"/>
        <geom type="plane" size="6 6 0.1" {}/>
        <geom type="box" size="0.6 0.6 0.2" pos="0.8 0.4 0.2" euler="5 10 0" material="mirror"/>
        {things}
        <camera name="level" pos="-2 0 1" xyaxes="0 -1 0 0.1 0 1" fovy="50"/>
        <camera name="down" pos="0.2 0 2.5" xyaxes="0 -1 0 0.7 0 0.7" fovy="75"/>
        <camera name="narrow" pos="3 3 2" xyaxes="-1 1 0 -0.3 -0.3 1" fovy="15"/>
        <camera name="low" pos="1.5 -1 0.5" xyaxes="0.3 1 0 -0.3 0 1" fovy="90"/>
        </worldbody></mujoco>"#,
        if floor { r#"material="mirror""# } else { "" }
    );
    let model = Arc::new(Model::from_xml_string(&xml).unwrap());
    let mut data = Data::new(&model).unwrap();
    data.forward().unwrap();
    (model, data)
}

#[test]
fn leaving_out_what_is_not_seen_changes_no_bit() {
    for (shadow, floor) in [(false, true), (false, false), (true, true)] {
        let (model, data) = hall_of_mirrors(shadow, floor);
        let mut renderer = Renderer::new(&model, 160, 90, RenderQuality::FULL).unwrap();
        for camera in ["level", "down", "narrow", "low"] {
            let camera = model.camera_id(camera).unwrap();
            renderer.draw_unseen(true);
            let whole = rgb(&mut renderer, &data, camera);
            let all = renderer.drawn();
            renderer.draw_unseen(false);
            assert!(
                whole == rgb(&mut renderer, &data, camera),
                "camera {camera}, shadows {shadow}, floor {floor}"
            );
            // What is not seen may throw a shadow on what is.
            assert_eq!(renderer.drawn() == all, shadow, "camera {camera}: {} of {all}", renderer.drawn());
        }
    }
}

#[test]
fn bad_requests_are_errors() {
    let (model, data) = scene();
    let fast = RenderQuality::FAST;
    for (width, height) in [(0, 10), (10, 0), (100_000, 10)] {
        assert!(matches!(Renderer::new(&model, width, height, fast), Err(Error::Value { .. })));
    }
    let absurd = RenderQuality { multisample: 1000, ..fast };
    assert!(matches!(Renderer::new(&model, 8, 8, absurd), Err(Error::Value { .. })));
    let mut renderer = Renderer::new(&model, 8, 8, fast).unwrap();
    let mut out = vec![0; 8 * 8 * 3];
    assert!(matches!(
        renderer.render_rgb(&data, 99, &mut out),
        Err(Error::Index { kind: "camera", index: 99, count: 3 })
    ));
    assert!(matches!(
        renderer.render_rgb(&data, 0, &mut out[1..]),
        Err(Error::Length { expected: 192, got: 191, .. })
    ));
    assert!(matches!(renderer.render_depth(&data, 0, &mut []), Err(Error::Length { .. })));
    assert!(matches!(renderer.render_segmentation(&data, 0, &mut [0; 3]), Err(Error::Length { .. })));
    assert!(renderer.show_geom_group(6, true).is_err());
}
