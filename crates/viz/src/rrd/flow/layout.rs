//! How a recording of flow opens: "plan" first, samples side by side, the sampler at work.

use rerun::blueprint::components::{BackgroundKind, Corner2D, Eye3DKind, LoopMode, PanelState, PlayState};
use rerun::blueprint::{
    ContainerLike, Grid, Horizontal, Spatial2DView, Spatial3DView, StateTimelineView, Tabs, TextDocumentView,
    TextLogView, TimePanel, TimeSeriesView, Vertical,
};
use rerun::external::re_sdk_types::blueprint::archetypes::{
    Background, EyeControls3D, LineGrid3D, PlotLegend,
};
use rerun::{AsComponents, Color};

use super::super::FRAME;
use super::super::blueprint::{Book, Properties, panels};
use crate::flow::FlowScene;

/// What there is to show, over all scenes of the recording.
#[derive(Debug, Default)]
pub(super) struct Shown {
    /// The most samples of any scene.
    pub(super) predictions: usize,
    is_started: bool,
    has_truth: bool,
    has_judged: bool,
    has_chain: bool,
    has_phases: bool,
    has_verdicts: bool,
    chosen: usize,
    /// Spectator and what it looks at, metres in the world.
    eye: [f32; 3],
    target: [f32; 3],
}

impl Shown {
    pub(super) fn add(&mut self, scene: &FlowScene) {
        self.predictions = self.predictions.max(scene.predictions.len());
        self.has_truth |= scene.truth.is_some();
        self.has_judged |= scene.predictions.iter().any(|p| p.final_picture.is_some());
        self.has_chain |= scene.shown().is_some_and(|p| !p.chain.is_empty());
        self.has_phases |= !scene.phases.is_empty();
        self.has_verdicts |= scene.predictions.iter().any(|p| !p.verdicts.is_empty());
        if !std::mem::replace(&mut self.is_started, true) {
            self.chosen = scene.chosen.unwrap_or(0);
            let (eye, target) = crate::flow::spectator(scene);
            self.eye = eye.coords.map(|x| x as f32).into();
            self.target = target.coords.map(|x| x as f32).into();
        }
    }
}

pub(super) fn book(shown: &Shown) -> Book {
    let mut properties = Properties::default();
    let mut tabs: Vec<ContainerLike> = vec![plan(shown, &mut properties)];
    if shown.predictions > 1 {
        tabs.push(compare(shown, &mut properties));
    }
    if shown.has_chain {
        let view =
            space("out of the noise", "denoise", &["+ $origin/**", "+ /world/scene"], shown, &mut properties);
        tabs.push(Horizontal::new([view]).with_name("denoise").into());
    }
    let time = TimePanel::new()
        .with_state(PanelState::Collapsed)
        .with_timeline(FRAME)
        .with_fps(4.0)
        .with_play_state(PlayState::Playing)
        .with_loop_mode(LoopMode::All);
    Book { blueprint: panels(Tabs::new(tabs), time), properties }
}

/// The scene in space; the camera with tracks and the judged picture; errors, phases, the card.
fn plan(shown: &Shown, properties: &mut Properties) -> ContainerLike {
    let mut contents =
        vec!["+ /world/**".to_owned(), "- /world/cam/depth".into(), "- /world/cam/tracks/**".into()];
    // The other samples have a tab of their own.
    contents.push("- /world/flow/pred/**".into());
    contents.push(format!("+ /world/flow/pred/{}/**", shown.chosen));
    let contents: Vec<&str> = contents.iter().map(String::as_str).collect();
    let left = space("3D", "world", &contents, shown, properties);

    let camera = Spatial2DView::new("camera: true and predicted tracks").with_origin("world/cam");
    let camera = camera.with_contents(["+ $origin/rgb", "+ $origin/tracks/**"]);
    let mut pictures: Vec<ContainerLike> = vec![camera.into()];
    if shown.has_judged {
        let judged = Spatial2DView::new("as judged").with_origin(format!("judged/{}", shown.chosen));
        pictures.push(judged.into());
    }
    let upper = Horizontal::new([left, Vertical::new(pictures).into()]).with_column_shares([3.0, 2.0]);

    let legend = PlotLegend::new().with_corner(Corner2D::LeftTop);
    let mut lower: Vec<ContainerLike> = Vec::new();
    let mut shares: Vec<f32> = Vec::new();
    if shown.has_truth && shown.predictions > 0 {
        let plot = TimeSeriesView::new("distance to the truth, cm").with_origin("plot/error_cm");
        lower.push(properties.with(plot, &[("PlotLegend", &legend)]));
        shares.push(1.4);
    }
    let others = TimeSeriesView::new("other curves").with_origin("plot");
    let others = others.with_contents(["+ $origin/**", "- $origin/error_cm/**"]);
    lower.push(properties.with(others, &[("PlotLegend", &legend)]));
    shares.push(1.0);
    let mut words: Vec<ContainerLike> = Vec::new();
    if shown.has_phases {
        words.push(StateTimelineView::new("phases").with_origin("phase").into());
    }
    if shown.has_verdicts {
        words.push(TextLogView::new("verdicts").with_origin("verdict").into());
    }
    if !words.is_empty() {
        lower.push(Vertical::new(words).into());
        shares.push(1.0);
    }
    lower.push(TextDocumentView::new("card").with_origin("card").into());
    shares.push(1.2);
    let lower = Horizontal::new(lower).with_column_shares(shares);
    Vertical::new([ContainerLike::from(upper), lower.into()])
        .with_row_shares([2.6, 1.0])
        .with_name("plan")
        .into()
}

/// One view per sample, each with the truth.
fn compare(shown: &Shown, properties: &mut Properties) -> ContainerLike {
    let mut cells: Vec<ContainerLike> = Vec::new();
    for k in 0..shown.predictions {
        let this = format!("+ /world/flow/pred/{k}/**");
        let contents = ["+ /world/scene", "+ /world/object/**", "+ /world/flow/truth/points", &this];
        let name = if k == shown.chosen { format!("sample {k}, shown") } else { format!("sample {k}") };
        cells.push(space(&name, "world", &contents, shown, properties));
    }
    let columns = (cells.len() as f64).sqrt().ceil() as u32;
    Grid::new(cells).with_grid_columns(columns.max(1)).with_name("compare").into()
}

fn space(
    name: &str,
    origin: &str,
    contents: &[&str],
    shown: &Shown,
    properties: &mut Properties,
) -> ContainerLike {
    let eye = EyeControls3D::new()
        .with_kind(Eye3DKind::Orbital)
        .with_position(shown.eye)
        .with_look_target(shown.target)
        .with_eye_up([0.0, 0.0, 1.0]);
    let ground = Background::new(BackgroundKind::SolidColor).with_color(Color::from_rgb(22, 26, 32));
    let grid = LineGrid3D::new().with_visible(false);
    let settings: [(&str, &dyn AsComponents); 3] =
        [("EyeControls3D", &eye), ("Background", &ground), ("LineGrid3D", &grid)];
    let view = Spatial3DView::new(name).with_origin(origin).with_contents(contents.iter().copied());
    properties.with(view, &settings)
}
