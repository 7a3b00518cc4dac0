//! The pictures, as SVG.

use anyhow::{Result, anyhow};
use fleet::life::Stage;
use plotters::coord::Shift;
use plotters::prelude::*;

use super::traffic::{Curve, Traffic};
use super::virtually::{PAPER, Way};
use super::{Figures, Installed};

const SIZE: (u32, u32) = (960, 540);
const FONT: &str = "sans-serif";
/// Colours of racks, one after the other.
const RACKS: [RGBColor; 5] = [
    RGBColor(31, 119, 180),
    RGBColor(255, 127, 14),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
    RGBColor(140, 86, 75),
];
const BEFORE: RGBColor = RGBColor(190, 190, 190);
const FETCHING: RGBColor = RGBColor(31, 119, 180);
const AFTER: RGBColor = RGBColor(255, 187, 120);
/// Points of one line of Figure 9 at most; more cannot be told apart.
const POINTS: usize = 120;

type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Figure 8: what each node took, by its number.
pub(super) fn installations(nodes: &[Installed], run: &Figures) -> Result<String> {
    svg(SIZE, |area| {
        let title = format!(
            "Figure 8 - {} agents in namespaces: order to proof, mean {:.1} s ({} MiB at {} Mbit/s; firmware and kernel replaced)",
            run.nodes,
            run.installed.mean,
            run.bytes >> 20,
            run.link / 1_000_000
        );
        let top = run.installed.most.max(run.bound) * 1.25;
        let mut chart = ChartBuilder::on(area)
            .caption(title, (FONT, 16))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d(0.5..nodes.len() as f64 + 0.5, 0.0..top)?;
        chart.configure_mesh().x_desc("node").y_desc("seconds").disable_x_mesh().light_line_style(WHITE).draw()?;
        let spans: Vec<(f64, f64, f64)> = nodes
            .iter()
            .map(|node| {
                node.span(Stage::Fetching).map_or((0.0, 0.0, node.seconds), |(at, took)| (at, at + took, node.seconds))
            })
            .collect();
        let bars = |from: fn(&(f64, f64, f64)) -> f64, to: fn(&(f64, f64, f64)) -> f64, colour: RGBColor| {
            spans.iter().enumerate().map(move |(index, span)| {
                let x = index as f64 + 1.0;
                Rectangle::new([(x - 0.4, from(span)), (x + 0.4, to(span))], colour.filled())
            })
        };
        let series = [
            ("before fetching: start rate, boot (replaced)", BEFORE, bars(|_| 0.0, |span| span.0, BEFORE)),
            ("fetching", FETCHING, bars(|span| span.0, |span| span.1, FETCHING)),
            ("giving to others, proof (replaced)", AFTER, bars(|span| span.1, |span| span.2, AFTER)),
        ];
        for (label, colour, bars) in series {
            chart.draw_series(bars)?.label(label).legend(move |at| patch(at, colour));
        }
        let across = |level: f64| [(0.5, level), (nodes.len() as f64 + 0.5, level)];
        let first = spans.iter().map(|span| span.0).fold(f64::INFINITY, f64::min);
        chart
            .draw_series(LineSeries::new(across(first + run.bound), RED.stroke_width(2)))?
            .label(format!("bound {:.1} s after the first fetch began", run.bound))
            .legend(|at| key(at, RED));
        chart
            .draw_series(LineSeries::new(across(run.installed.mean), BLACK.stroke_width(1)))?
            .label("mean")
            .legend(|at| key(at, BLACK));
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        Ok(())
    })
}

/// Figure 9: a line for each node as in the paper, and their mean with the link below.
pub(super) fn bandwidths(traffic: &Traffic, run: &Figures) -> Result<String> {
    let looks = thin(traffic.downloads());
    let end = looks.last().map_or(1.0, |(at, _)| *at);
    let link = run.link as f64 / 8.0 * super::PAYLOAD_SHARE / 1000.0;
    let per_rack = (run.nodes / run.racks.max(1)).max(1);
    svg((960, 860), |area| {
        let (above, below) = area.split_vertically(580);
        let title = format!(
            "Figure 9 - download bandwidth of {} nodes (namespaces, {} Mbit/s)",
            run.nodes,
            run.link / 1_000_000
        );
        let mut chart = ChartBuilder::on(&above).caption(title, (FONT, 16)).margin(12).build_cartesian_3d(
            0.0..end,
            0.0..link * 1.1,
            0.0..traffic.nodes() as f64,
        )?;
        chart.with_projection(|mut view| {
            view.pitch = 0.55;
            view.yaw = 0.45;
            view.scale = 0.85;
            view.into_matrix()
        });
        chart.configure_axes().x_labels(8).y_labels(4).z_labels(5).light_grid_style(BLACK.mix(0.06)).draw()?;
        for node in (0..traffic.nodes()).rev() {
            let colour = RACKS[node / per_rack % RACKS.len()].mix(0.55);
            let line = looks.iter().map(|(at, rates)| (*at, rates[node] / 1000.0, node as f64));
            chart.draw_series(LineSeries::new(line, colour.stroke_width(1)))?;
        }
        let mut chart = ChartBuilder::on(&below)
            .caption(
                "above: seconds, kB/s, node; below: the mean of all nodes, and the slowest and fastest tenth",
                (FONT, 13),
            )
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..end, 0.0..link * 1.15)?;
        chart.configure_mesh().x_desc("seconds").y_desc("kB/s").light_line_style(WHITE).draw()?;
        let mean = |rates: &Vec<f64>| rates.iter().sum::<f64>() / rates.len().max(1) as f64;
        for (label, colour, tenths) in [("slowest tenth", BEFORE, 1), ("fastest tenth", AFTER, 9)] {
            let at_rank = looks.iter().map(|(at, rates)| {
                let mut sorted = rates.clone();
                sorted.sort_by(f64::total_cmp);
                (*at, sorted.get(sorted.len() * tenths / 10).copied().unwrap_or(0.0) / 1000.0)
            });
            let line = LineSeries::new(at_rank, colour.stroke_width(1));
            chart.draw_series(line)?.label(label).legend(move |at| key(at, colour));
        }
        let means = looks.iter().map(|(at, rates)| (*at, mean(rates) / 1000.0));
        chart.draw_series(LineSeries::new(means, BLUE.stroke_width(2)))?.label("mean").legend(|at| key(at, BLUE));
        chart
            .draw_series(LineSeries::new([(0.0, link), (end, link)], RED))?
            .label("payload of a node's link")
            .legend(|at| key(at, RED));
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        Ok(())
    })
}

/// Figure 10: one node's download and upload against per cent done.
pub(super) fn one_node(curve: &Curve, run: &Figures) -> Result<String> {
    let link = run.link as f64 / 8.0 * super::PAYLOAD_SHARE / 1000.0;
    svg(SIZE, |area| {
        let title = format!(
            "Figure 10 - {}, one of {} nodes (namespaces): gives from {:.1} % on",
            run.shown, run.nodes, run.gives_from_percent
        );
        let mut chart = ChartBuilder::on(area)
            .caption(title, (FONT, 16))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..101.0, 0.0..link * 1.2)?;
        chart
            .configure_mesh()
            .x_desc("per cent of the image received")
            .y_desc("kB/s")
            .light_line_style(WHITE)
            .draw()?;
        let under_way: Vec<_> = curve.points.iter().filter(|point| point.percent > 0.0 && point.down > 0.0).collect();
        let down = under_way.iter().map(|point| (point.percent, point.down / 1000.0));
        let up = under_way.iter().map(|point| (point.percent, point.up / 1000.0));
        chart.draw_series(LineSeries::new(down, BLUE.stroke_width(2)))?.label("download").legend(|at| key(at, BLUE));
        chart.draw_series(LineSeries::new(up, MAGENTA.stroke_width(2)))?.label("upload").legend(|at| key(at, MAGENTA));
        chart
            .draw_series(LineSeries::new([(0.0, link), (101.0, link)], RED))?
            .label("payload of its link")
            .legend(|at| key(at, RED));
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        Ok(())
    })
}

/// Figure 8 again, simulated with real stage times, beside what the paper took.
pub(super) fn simulated(ways: &[(String, Vec<Way>)]) -> Result<String> {
    let most = ways.iter().flat_map(|(_, nodes)| nodes).map(|way| way.installed() / 60.0).fold(PAPER.1, f64::max);
    let count = ways.iter().map(|(_, nodes)| nodes.len()).max().unwrap_or(1) as f64;
    svg(SIZE, |area| {
        let mut chart = ChartBuilder::on(area)
            .caption("Figure 8, simulated delivery with stage times from virtual machines: order to proof", (FONT, 16))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..count, 0.0..most * 1.1)?;
        chart.configure_mesh().x_desc("node").y_desc("minutes").light_line_style(WHITE).draw()?;
        let band = Rectangle::new([(0.0, PAPER.0), (count, PAPER.1)], AFTER.mix(0.4).filled());
        chart.draw_series([band])?.label("the paper: 14 to 23 min").legend(|at| patch(at, AFTER));
        let mean = [(0.0, PAPER.2), (count, PAPER.2)];
        chart.draw_series(LineSeries::new(mean, RED))?.label("the paper's mean, 17 min 15 s").legend(|at| key(at, RED));
        for (index, (title, nodes)) in ways.iter().enumerate() {
            let colour = RACKS[index % RACKS.len()];
            let points = nodes
                .iter()
                .enumerate()
                .map(|(node, way)| Circle::new((node as f64 + 1.0, way.installed() / 60.0), 2, colour.filled()));
            chart.draw_series(points)?.label(title.as_str()).legend(move |at| patch(at, colour));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::MiddleRight)
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        Ok(())
    })
}

fn svg(size: (u32, u32), draw: impl FnOnce(&Canvas<'_>) -> Drawn) -> Result<String> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
        let drawn = (|| -> Drawn {
            area.fill(&WHITE)?;
            draw(&area)?;
            Ok(area.present()?)
        })();
        drawn.map_err(|error| anyhow!("cannot draw: {error}"))?;
    }
    Ok(text)
}

/// At most [`POINTS`] looks, each the mean of those that it stands for.
fn thin(looks: Vec<(f64, Vec<f64>)>) -> Vec<(f64, Vec<f64>)> {
    let every = looks.len().div_ceil(POINTS).max(1);
    let mean = |some: &[(f64, Vec<f64>)]| {
        let (at, first) = &some[some.len() - 1];
        let of = |node: usize| some.iter().map(|(_, rates)| rates[node]).sum::<f64>() / some.len() as f64;
        (*at, (0..first.len()).map(of).collect())
    };
    looks.chunks(every).map(mean).collect()
}

fn key((x, y): (i32, i32), colour: RGBColor) -> PathElement<(i32, i32)> {
    PathElement::new(vec![(x, y), (x + 18, y)], colour.stroke_width(2))
}

fn patch((x, y): (i32, i32), colour: RGBColor) -> Rectangle<(i32, i32)> {
    Rectangle::new([(x, y - 4), (x + 18, y + 4)], colour.filled())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn many_looks_become_few_and_keep_their_mean() {
        let looks: Vec<(f64, Vec<f64>)> = (0..600).map(|at| (f64::from(at), vec![f64::from(at % 2), 4.0])).collect();
        let thinned = thin(looks);
        assert_eq!(thinned.len(), POINTS);
        assert!(thinned.iter().all(|(_, rates)| rates.len() == 2 && (0.3..0.7).contains(&rates[0]) && rates[1] == 4.0));
        assert_eq!(thin(Vec::new()), []);
    }

    #[test]
    fn the_papers_times_stand_beside_the_simulated_ones() {
        let way = Way { node: 1, started: 60.0, fetch: 60.0, after: 60.0 };
        let text = simulated(&[("230-paper".to_owned(), vec![way])]).unwrap();
        assert!(text.starts_with("<svg") && text.contains("14 to 23 min") && text.contains("230-paper"));
    }
}
