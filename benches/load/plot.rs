//! How are figures drawn? As SVG, small and without anything from elsewhere. Axes bear ratios or counts, never times of one
//! machine: latencies stand against the median of their row.

use std::fmt::Write as _;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
/// Told apart by people who do not see all colours, too (Okabe and Ito).
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];

/// One line of a plot.
struct Line<'a> {
    name: &'a str,
    points: Vec<(f64, f64)>,
}

/// How many times its median each part of a row's values takes: a line for each row, by its 101 quantiles.
pub(crate) fn latencies(rows: &[(&'static str, Vec<f64>)]) -> String {
    let lines = rows.iter().filter_map(|(name, values)| {
        let median = values.get(50).copied().filter(|median| *median > 0.0)?;
        let part = |at: usize| f64::from(u32::try_from(at).unwrap_or(u32::MAX));
        let points = values.iter().enumerate().map(|(at, value)| (part(at), value / median)).collect();
        Some(Line { name, points })
    });
    draw("latency, as a multiple of each row's median", "percent of the calls", &lines.collect::<Vec<_>>())
}

/// Cost against a count, as a multiple of the floor's at its largest count, or of ours where there is no floor.
pub(crate) fn cost(name: &str, ours: &[(f64, f64)], floor: &[(f64, f64)]) -> String {
    let unit = floor.last().or(ours.last()).map_or(1.0, |point| point.1).max(f64::MIN_POSITIVE);
    let scaled = |points: &[(f64, f64)]| points.iter().map(|(x, y)| (*x, y / unit)).collect::<Vec<_>>();
    let mut lines = vec![Line { name: "ours", points: scaled(ours) }];
    if !floor.is_empty() {
        lines.push(Line { name: "floor", points: scaled(floor) });
    }
    let (what, count) = name.split_once(" by ").unwrap_or((name, "count"));
    draw(&format!("{what}, as a multiple of the last value below"), count, &lines)
}

fn draw(title: &str, below: &str, lines: &[Line<'_>]) -> String {
    let most = |of: fn(&(f64, f64)) -> f64| {
        let all = lines.iter().flat_map(|line| line.points.iter().map(of));
        all.filter(|value| value.is_finite()).fold(f64::MIN_POSITIVE, f64::max)
    };
    let (x_most, y_most) = (most(|point| point.0), most(|point| point.1));
    let x = |value: f64| LEFT + value / x_most * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| HEIGHT - BOTTOM - value / y_most * (HEIGHT - TOP - BOTTOM);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"14\">{}</text>\n",
        escaped(title)
    );
    for step in 0..=4 {
        let part = f64::from(step) / 4.0;
        let (across, up) = (x(x_most * part), y(y_most * part));
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        put(&mut svg, &format!("<path d=\"M{LEFT} {up:.1}H{right}\" stroke=\"#dddddd\"/>"));
        let text = crate::report::number(y_most * part);
        put(&mut svg, &format!("<text x=\"62\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>", up + 4.0));
        let text = crate::report::number(x_most * part);
        put(
            &mut svg,
            &format!("<text x=\"{across:.1}\" y=\"{}\" text-anchor=\"middle\">{text}</text>", bottom + 18.0),
        );
    }
    put(&mut svg, &format!("<text x=\"{LEFT}\" y=\"{}\">{}</text>", HEIGHT - 12.0, escaped(below)));
    for (number, line) in lines.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let points: Vec<String> = line
            .points
            .iter()
            .filter(|(a, b)| a.is_finite() && b.is_finite())
            .map(|(a, b)| format!("{:.1},{:.1}", x(*a), y(*b)))
            .collect();
        put(
            &mut svg,
            &format!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                points.join(" ")
            ),
        );
        let row = TOP + 18.0 * f64::from(u32::try_from(number).unwrap_or(u32::MAX));
        put(
            &mut svg,
            &format!(
                "<text x=\"{}\" y=\"{row:.1}\" fill=\"{colour}\">{}</text>",
                WIDTH - RIGHT + 12.0,
                escaped(line.name)
            ),
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn put(svg: &mut String, element: &str) {
    writeln!(svg, "{element}").expect("a string takes all");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_has_a_line_for_each_row() {
        let values: Vec<f64> = (0..=100).map(f64::from).collect();
        let svg = latencies(&[("mint", values.clone()), ("a<b", values), ("none", vec![0.0; 101])]);
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(svg.contains("a&lt;b") && !svg.contains("NaN") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn cost_is_told_as_a_multiple_of_the_floor() {
        let svg = cost("memory by agents", &[(0.0, 0.0), (10.0, 8.0)], &[(0.0, 0.0), (10.0, 4.0)]);
        assert!(svg.contains(">2</text>") && svg.contains(">agents</text>") && svg.contains(">floor</text>"));
        assert!(!cost("x", &[], &[]).contains("NaN"));
    }
}
