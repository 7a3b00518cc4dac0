//! A run as a picture: how much the nodes have, how many are done, and when
//! each finished.

use plotters::prelude::*;

use crate::report::Report;

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw the run: {0}")]
pub struct PictureError(String);

const SIZE: (u32, u32) = (960, 540);

impl Report {
    /// The picture as SVG: pieces had and nodes finished over time, and the
    /// bound.
    ///
    /// # Errors
    /// When the drawing library refuses.
    pub fn svg(&self) -> Result<String, PictureError> {
        let mut text = String::new();
        self.draw(&mut text).map_err(|error| PictureError(error.to_string()))?;
        Ok(text)
    }

    fn draw(&self, text: &mut String) -> Result<(), Box<dyn std::error::Error>> {
        let area = SVGBackend::with_string(text, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let seconds = |nanos: u64| nanos as f64 / 1e9;
        let end = seconds(self.makespan.max(self.bound)) * 1.05;
        let title =
            format!("{} - makespan {:.2} s, {:.3} of the bound", self.title, seconds(self.makespan), self.ratio());
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..end, 0.0..101.0)?;
        chart.configure_mesh().x_desc("seconds").y_desc("per cent").light_line_style(WHITE).draw()?;
        let all = (f64::from(self.nodes) * f64::from(self.fetched_pieces)).max(1.0);
        let pieces = self.samples.iter().map(|sample| (seconds(sample.at), 100.0 * sample.pieces as f64 / all));
        let times = finish_times(self);
        let share = |index: usize| 100.0 * (index + 1) as f64 / f64::from(self.nodes.max(1));
        let finished = times.iter().enumerate().map(|(index, at)| (seconds(*at), share(index)));
        let image = self.image_bytes.max(1) as f64;
        let seed = self.samples.iter().map(|sample| (seconds(sample.at), 100.0 * sample.seed_sent as f64 / image));
        let bound = seconds(self.bound);
        chart.draw_series(LineSeries::new(pieces, BLUE.stroke_width(2)))?.label("pieces").legend(|at| key(at, BLUE));
        chart
            .draw_series(LineSeries::new(finished, GREEN.stroke_width(2)))?
            .label("nodes finished")
            .legend(|at| key(at, GREEN));
        chart
            .draw_series(LineSeries::new(seed.filter(|(_, y)| *y <= 101.0), MAGENTA))?
            .label("sent by the seeds, of the image")
            .legend(|at| key(at, MAGENTA));
        chart
            .draw_series(LineSeries::new([(bound, 0.0), (bound, 101.0)], RED))?
            .label("bound")
            .legend(|at| key(at, RED));
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        area.present()?;
        Ok(())
    }
}

fn finish_times(report: &Report) -> Vec<u64> {
    let seeds = report.per_node.len() - report.nodes as usize;
    let mut times: Vec<u64> = report.per_node[seeds..].iter().filter_map(|node| node.finished).collect();
    times.sort_unstable();
    times
}

fn key((x, y): (i32, i32), colour: RGBColor) -> PathElement<(i32, i32)> {
    PathElement::new(vec![(x, y), (x + 18, y)], colour)
}
