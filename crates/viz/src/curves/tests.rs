#![allow(clippy::unwrap_used)]
use super::*;

fn success() -> Chart {
    let tally = |(x, k)| (x, Tally::new(k, 50));
    Chart::new("Success & \"care\"", "update", "success")
        .y_axis(YAxis::Percent)
        .line(Series::rates("SRPO", [(0.0, 10), (5.0, 30), (10.0, 48)].map(tally)))
        .line(Series::new("before", [(0.0, 0.2), (10.0, 0.2)]).dashed())
}

#[test]
fn a_chart_is_one_svg_with_lines_bands_and_legend() {
    let svg = success().to_svg().unwrap();
    assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
    assert!(svg.contains("aria-label=\"Success &amp; &quot;care&quot;\""));
    assert_eq!(svg.matches("<polygon").count(), 1, "one band");
    assert!(svg.contains(&theme::hex(theme::series(0))) && svg.contains(&theme::hex(theme::series(1))));
    for word in ["SRPO", "before", "100%", "0%", "update"] {
        assert!(svg.contains(word), "{word} is missing");
    }
    assert!(svg.contains(&theme::hex(theme::PAPER)), "stands on white");
}

#[test]
fn inline_svg_takes_its_colours_from_the_page() {
    let svg = success().to_inline_svg().unwrap();
    assert!(svg.contains("var(--ink)") && svg.contains("var(--muted)") && svg.contains("var(--grid)"));
    for fixed in [theme::INK, theme::MUTED, theme::GRID, theme::PAPER] {
        assert!(!svg.contains(&theme::hex(fixed)));
    }
}

#[test]
fn values_that_are_not_finite_are_left_out() {
    let line = Series::new("", [(0.0, 1.0), (1.0, f64::NAN), (2.0, f64::INFINITY), (3.0, 2.0)]);
    let chart = Chart::new("loss", "update", "nats").line(line);
    let svg = chart.to_svg().unwrap();
    assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    assert_eq!(svg.matches("<circle").count(), 2);
    assert!(!chart.is_empty());
    let empty = Chart::new("empty", "x", "y").line(Series::new("none", [(0.0, f64::NAN)]));
    assert!(empty.is_empty() && empty.to_svg().unwrap().contains("none"));
}

#[test]
fn a_chart_without_room_is_an_error() {
    let error = success().size(100, 50).to_svg().unwrap_err().to_string();
    assert!(error.contains("Success") && error.contains("100x50"), "{error}");
}

#[test]
fn tick_labels_are_short() {
    assert_eq!(short(0.5, &(0.0..1.0)), "0.5");
    assert_eq!(short(150.0, &(0.0..300.0)), "150");
    assert_eq!(short(3e-4, &(0.0..5e-4)), "3e-4");
    assert_eq!(short(2.5e6, &(0.0..3e6)), "2.5e6");
    assert_eq!(short(-0.0, &(-1.0..1.0)), "0");
    assert_eq!(short(1200.0, &(0.0..5000.0)), "1200");
}

#[test]
fn a_long_legend_takes_more_rows() {
    let line = |name: &str| Series::new(name, [(0.0, 0.0), (1.0, 1.0)]);
    let chart =
        |n: usize| (0..n).map(|_| line("push block to mark")).fold(Chart::new("t", "x", "y"), Chart::line);
    let rows = |n: usize| {
        let svg = chart(n).to_inline_svg().unwrap();
        let texts = svg.split("<text ").filter(|text| text.contains("push block to mark"));
        let y = |text: &str| text.split("y=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
        texts.map(y).collect::<std::collections::BTreeSet<_>>().len()
    };
    assert_eq!((rows(2), rows(6)), (1, 2));
}
