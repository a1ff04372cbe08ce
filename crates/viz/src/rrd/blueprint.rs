//! The arrangement on the screen: tabs per stage, a comparison first; a grid of plots for the training.

use super::layout::{CARD, Layout, Slot};
use super::stream::Stream;
use super::training::{self, DRAWING};
use super::{FRAME, OrEncode, UPDATE};
use crate::error::{Error, Result};
use rerun::blueprint::components::{BackgroundKind, Corner2D, Eye3DKind, LoopMode, PanelState, PlayState};
use rerun::blueprint::{
    Blueprint, BlueprintActivation, BlueprintPanel, ContainerLike, Grid, Horizontal, SelectionPanel,
    Spatial2DView, Spatial3DView, Tabs, TextDocumentView, TimePanel, TimeSeriesView, Vertical,
};
use rerun::external::re_log_types::{EntityPath, StoreKind};
use rerun::external::re_sdk_types::SerializedComponentBatch;
use rerun::external::re_sdk_types::blueprint::archetypes::{
    Background, EyeControls3D, LineGrid3D, PlotLegend, ScalarAxis, VisualBounds2D,
};
use rerun::log::LogMsg;
use rerun::{AsComponents, Color, datatypes};
use std::cmp::Ordering;

/// A blueprint and the properties of its views, which the library's builders cannot set: 3D views get their
/// spectator, plots their range.
pub(super) struct Book {
    pub(super) blueprint: Blueprint,
    pub(super) properties: Properties,
}

#[derive(Default)]
pub(super) struct Properties(Vec<(EntityPath, Vec<SerializedComponentBatch>)>);

impl Properties {
    /// `view` with properties, each named like its archetype.
    pub(super) fn with(
        &mut self,
        view: impl Into<ContainerLike>,
        properties: &[(&str, &dyn AsComponents)],
    ) -> ContainerLike {
        let view = view.into();
        if let ContainerLike::View(view) = &view {
            for (name, archetype) in properties {
                let path = format!("{}/{name}", view.blueprint_path());
                self.0.push((path.into(), archetype.as_serialized_batches()));
            }
        }
        view
    }
}

impl Book {
    /// The messages that bring this arrangement to the viewer of `stream`.
    pub(super) fn messages(self, stream: &Stream) -> Result<Vec<LogMsg>> {
        self.blueprint.send(&stream.rec, BlueprintActivation::default()).encode("layout")?;
        let mut messages = stream.take("layout")?;
        let id = messages.iter().map(LogMsg::store_id).find(|id| id.kind() == StoreKind::Blueprint).cloned();
        let id =
            id.ok_or_else(|| Error::Encode { what: "layout".into(), reason: "no blueprint store".into() })?;

        let more = Stream::of_store(&id)?;
        more.rec.set_time_sequence("blueprint", 0);
        for (path, batches) in self.properties.0 {
            more.rec.log_serialized_batches(path, false, batches).encode("layout")?;
        }
        let more: Vec<LogMsg> =
            more.take("layout")?.into_iter().filter(|m| matches!(m, LogMsg::ArrowMsg(..))).collect();
        // The viewer takes the arrangement over at the activation, so properties must come before it.
        let at = messages.iter().position(|m| matches!(m, LogMsg::BlueprintActivationCommand(_)));
        let at = at.unwrap_or(messages.len());
        messages.splice(at..at, more);
        Ok(messages)
    }
}

/// Tabs: one episode with the training, before and after side by side, one tab per stage, the run's card.
pub(super) fn rollouts(layout: &Layout) -> Book {
    let mut properties = Properties::default();
    let mut tabs: Vec<ContainerLike> = overview(layout, &mut properties).into_iter().collect();
    tabs.extend(comparison(layout));
    // The latest stage first: it is what a viewer of a running or finished run wants to see.
    for stage in layout.stages.iter().rev() {
        let episodes: Vec<ContainerLike> =
            stage.episodes.iter().map(|slot| episode(slot, &mut properties)).collect();
        tabs.push(Tabs::new(episodes).with_name(stage.title.as_str()).into());
    }
    if !layout.card.is_empty() {
        tabs.push(TextDocumentView::new("run").with_origin(CARD).into());
    }
    let time = TimePanel::new()
        .with_state(PanelState::Collapsed)
        .with_timeline(FRAME)
        .with_fps(if layout.control_hz > 0.0 { layout.control_hz } else { 20.0 })
        .with_play_state(PlayState::Playing)
        .with_loop_mode(LoopMode::All);
    Book { blueprint: panels(Tabs::new(tabs), time), properties }
}

/// A grid of plots over the training steps.
pub(super) fn curves(layout: &Layout) -> Book {
    let mut properties = Properties::default();
    let above = PlotLegend::new().with_corner(Corner2D::RightTop);
    let below = PlotLegend::new().with_corner(Corner2D::RightBottom);
    let unit = ScalarAxis::new().with_range(datatypes::Range1D([0.0, 1.0]));
    let mut cells: Vec<ContainerLike> = Vec::new();
    for (title, origin) in layout.plots() {
        let settings: &[(&str, &dyn AsComponents)] = match title.as_str() {
            "Success" => &[("PlotLegend", &below), ("ScalarAxis", &unit)],
            _ => &[("PlotLegend", &above)],
        };
        cells.push(properties.with(TimeSeriesView::new(title).with_origin(origin), settings));
    }
    // The card lies in the recording with the episodes, if there is one.
    if !layout.card.is_empty() && layout.stages.is_empty() {
        cells.push(TextDocumentView::new("run").with_origin(CARD).into());
    }
    let time = TimePanel::new()
        .with_state(PanelState::Collapsed)
        .with_timeline(UPDATE)
        .with_play_state(PlayState::Following);
    Book { blueprint: panels(Grid::new(cells).with_grid_columns(3), time), properties }
}

pub(super) fn panels(root: impl Into<ContainerLike>, time: TimePanel) -> Blueprint {
    Blueprint::new(root)
        .with_auto_layout(false)
        .with_auto_views(false)
        .with_blueprint_panel(BlueprintPanel::from_state(PanelState::Expanded))
        .with_selection_panel(SelectionPanel::from_state(PanelState::Collapsed))
        .with_time_panel(time)
}

/// Camera images of the first and the last stage side by side, for each task that both have.
fn comparison(layout: &Layout) -> Option<ContainerLike> {
    let [first, .., last] = layout.stages.as_slice() else { return None };
    let mut cells: Vec<ContainerLike> = Vec::new();
    for before in &first.episodes {
        let Some(after) = last.episodes.iter().find(|slot| slot.name == before.name) else { continue };
        for (stage, slot) in [(first, before), (last, after)] {
            let Some(camera) = slot.cameras.first() else { continue };
            let title = format!("{}: {}", stage.title, slot.label());
            cells.push(camera_view(&title, slot, &camera.name, true));
        }
    }
    let columns = match cells.len() {
        0 => return None,
        1..=4 => 2,
        5..=16 => 4,
        _ => 6,
    };
    let title = format!("{} | {}", first.title, last.title);
    Some(Grid::new(cells).with_grid_columns(columns).with_name(title).into())
}

/// A success of the last stage, the one with the longest way over the ground (a way straight down hides behind the
/// gripper), beside the training so far: the first thing one sees.
fn overview(layout: &Layout, properties: &mut Properties) -> Option<ContainerLike> {
    if layout.curves.is_empty() {
        return None;
    }
    let episodes = &layout.stages.last()?.episodes;
    let rank = |slot: &&Slot| (slot.success, slot.way_m);
    let by_rank = |a: &&Slot, b: &&Slot| rank(a).partial_cmp(&rank(b)).unwrap_or(Ordering::Equal);
    let slot = episodes.iter().max_by(by_rank)?;
    let drawing = Spatial2DView::new("training, first to last update").with_origin(DRAWING);
    let [x, y] = training::BOUNDS.map(datatypes::Range1D);
    let bounds = VisualBounds2D::new(datatypes::Range2D { x_range: x, y_range: y });
    let drawing = properties.with(drawing, &[("VisualBounds2D", &bounds)]);
    Some(columns(slot, Some(drawing), properties).with_name("overview").into())
}

/// 3D beside the cameras, the card and the curves of one episode.
fn episode(slot: &Slot, properties: &mut Properties) -> ContainerLike {
    columns(slot, None, properties).with_name(slot.label()).into()
}

fn columns(slot: &Slot, drawing: Option<ContainerLike>, properties: &mut Properties) -> Horizontal {
    let root = &slot.path;
    let space = space(slot, properties);
    let cameras: Vec<ContainerLike> = slot
        .cameras
        .iter()
        .map(|camera| camera_view(&camera.name, slot, &camera.name, !camera.is_moving))
        .collect();
    let card = TextDocumentView::new("card").with_origin(format!("{root}/card"));
    let left = PlotLegend::new().with_corner(Corner2D::LeftTop);
    let right = PlotLegend::new().with_corner(Corner2D::RightTop);
    let unit = ScalarAxis::new().with_range(datatypes::Range1D([-0.05, 1.05]));
    let reward = TimeSeriesView::new("reward").with_origin(format!("{root}/plot"));
    let reward = properties.with(reward, &[("PlotLegend", &left), ("ScalarAxis", &unit)]);
    let signals = TimeSeriesView::new("signals").with_origin(format!("{root}/signals"));
    let signals = properties.with(signals, &[("PlotLegend", &right)]);

    let mut text: Vec<ContainerLike> = vec![card.into(), reward, signals];
    let mut heights = vec![1.5, 0.7, 0.9];
    if let Some(drawing) = drawing {
        text.push(drawing);
        heights.push(1.9);
    }
    let text = Vertical::new(text).with_row_shares(heights);
    let (columns, shares) = if cameras.is_empty() {
        (vec![space, text.into()], vec![3.0, 1.5])
    } else {
        (vec![space, Vertical::new(cameras).into(), text.into()], vec![3.0, 1.5, 1.7])
    };
    Horizontal::new(columns).with_column_shares(shares)
}

/// The scene from beside the first camera.
fn space(slot: &Slot, properties: &mut Properties) -> ContainerLike {
    let eye = EyeControls3D::new()
        .with_kind(Eye3DKind::Orbital)
        .with_position(slot.eye)
        .with_look_target(slot.target)
        .with_eye_up([0.0, 0.0, 1.0]);
    let ground = Background::new(BackgroundKind::SolidColor).with_color(Color::from_rgb(22, 26, 32));
    let grid = LineGrid3D::new().with_visible(false);
    let view = Spatial3DView::new("3D").with_origin(format!("{}/world", slot.path));
    properties.with(view, &[("EyeControls3D", &eye), ("Background", &ground), ("LineGrid3D", &grid)])
}

/// What a camera saw, with the plan and, for a camera that stands still, the path drawn over it.
fn camera_view(title: &str, slot: &Slot, camera: &str, with_path: bool) -> ContainerLike {
    let root = &slot.path;
    let mut contents = vec!["+ $origin/**".to_owned()];
    if slot.has_plans {
        contents.push(format!("+ {root}/world/plan/**"));
    }
    if with_path {
        contents.push(format!("+ {root}/world/path"));
    }
    let view = Spatial2DView::new(title).with_origin(format!("{root}/world/cameras/{camera}"));
    view.with_contents(contents).into()
}
