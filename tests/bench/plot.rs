//! A table as a picture: a panel for each row, a bar for each system, whiskers from the least to the most.
//!
//! SVG, written by hand. It has a background of its own, so that it can be read on a page of any colour.

use std::fmt::Write as _;
use std::path::Path;

use crate::compare::Better;
use crate::report::{Row, Samples, Table, number};

const WIDTH: f64 = 900.0;
const MARGIN: f64 = 16.0;
const COLUMNS: usize = 3;
const GAP: f64 = 22.0;
/// Of a panel's two lines of heading, and of a bar with the space to the next one.
const HEADING: f64 = 32.0;
const BAR: f64 = 10.0;
const PITCH: f64 = 14.0;
/// What a panel keeps free for the systems' names at its left, and for figures at its right.
const NAMES: f64 = 120.0;
const FIGURES: f64 = 40.0;
/// Above the panels: the title, and a line that explains.
const TOP: f64 = 62.0;

const INK: &str = "#1f2328";
const FAINT: &str = "#59636e";
/// Of wirevm, and of others; each with frames carried by itself and by the kernel.
const OURS: [&str; 2] = ["#0969da", "#7cb8ff"];
const THEIRS: [&str; 2] = ["#818b98", "#c0c7cf"];

/// Draws `table` into a file; `better` says which way each row's figures are to go.
pub(crate) fn write(path: &Path, table: &Table, better: &[Option<Better>]) -> Result<(), String> {
    let wrote = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    let wrote = wrote.and_then(|()| std::fs::write(path, draw(table, better)));
    wrote.map_err(|error| format!("cannot write {}: {error}", path.display()))
}

fn draw(table: &Table, better: &[Option<Better>]) -> String {
    let panel_height = HEADING + PITCH * table.columns.len() as f64;
    let lines = table.rows.len().div_ceil(COLUMNS) as f64;
    let height = TOP + lines * (panel_height + GAP) + MARGIN - GAP;
    let panel_width = (WIDTH - 2.0 * MARGIN - GAP * (COLUMNS - 1) as f64) / COLUMNS as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"system-ui, 'DejaVu Sans', sans-serif\" font-size=\"10\" fill=\"{INK}\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    text(&mut svg, [MARGIN, 26.0], "font-size=\"14\" font-weight=\"bold\"", &table.title);
    let explained = "a bar is the median, its whisker the least and the most; only bars of one panel compare";
    text(&mut svg, [MARGIN, 43.0], &format!("fill=\"{FAINT}\""), explained);
    for (at, row) in table.rows.iter().enumerate() {
        let x = MARGIN + (at % COLUMNS) as f64 * (panel_width + GAP);
        let y = TOP + (at / COLUMNS) as f64 * (panel_height + GAP);
        panel(&mut svg, [x, y], panel_width, row, &table.columns, better.get(at).copied().flatten());
    }
    svg + "</svg>\n"
}

fn panel(
    svg: &mut String,
    [x, y]: [f64; 2],
    width: f64,
    row: &Row,
    systems: &[String],
    better: Option<Better>,
) {
    text(svg, [x, y + 10.0], "font-size=\"11\" font-weight=\"bold\"", &row.what);
    let merit = match better {
        Some(Better::More) => ", more is better",
        Some(Better::Less) => ", less is better",
        None => "",
    };
    text(svg, [x, y + 23.0], &format!("fill=\"{FAINT}\""), &format!("{}{merit}", row.unit));
    let most = row.cells.iter().filter(|cell| cell.median().is_some()).map(|cell| cell.range().1);
    let most = most.fold(0.0, f64::max);
    let scale = if most > 0.0 { (width - NAMES - FIGURES) / most } else { 0.0 };
    for (at, (system, samples)) in systems.iter().zip(&row.cells).enumerate() {
        let y = y + HEADING + PITCH * at as f64;
        text(svg, [x, y + BAR - 1.0], "", system);
        bar(svg, [x + NAMES, y], scale, colour(system), samples);
        let figure = samples.median().map_or("-".to_owned(), number);
        text(svg, [x + width, y + BAR - 1.0], "text-anchor=\"end\"", &figure);
    }
}

fn bar(svg: &mut String, [x, y]: [f64; 2], scale: f64, colour: &str, samples: &Samples) {
    let Some(median) = samples.median() else { return };
    let _ = writeln!(
        svg,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>",
        (median * scale).max(0.0)
    );
    let (least, most) = samples.range();
    if least < most {
        let (middle, left, right) = (y + BAR / 2.0, x + least.max(0.0) * scale, x + most.max(0.0) * scale);
        let ends = [left, right].map(|end| format!("M{end:.1} {:.1}v4", middle - 2.0)).join("");
        let _ = writeln!(
            svg,
            "<path d=\"M{left:.1} {middle:.1}H{right:.1}{ends}\" stroke=\"{INK}\" fill=\"none\"/>"
        );
    }
}

fn colour(system: &str) -> &'static str {
    let of = if system.starts_with("wirevm") { OURS } else { THEIRS };
    of[usize::from(system.ends_with("vhost"))]
}

fn text(svg: &mut String, [x, y]: [f64; 2], attributes: &str, said: &str) {
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{}</text>", escape(said));
}

fn escape(said: &str) -> String {
    said.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(columns: &[&str], rows: &[(&str, &[&[f64]])]) -> Table {
        let row = |(what, cells): &(&str, &[&[f64]])| Row {
            what: (*what).to_owned(),
            unit: "ms",
            cells: cells.iter().map(|cell| cell.iter().copied().collect()).collect(),
            goal: None,
        };
        Table {
            title: "A < B & C".to_owned(),
            columns: columns.iter().map(|name| (*name).to_owned()).collect(),
            rows: rows.iter().map(row).collect(),
            notes: Vec::new(),
        }
    }

    /// The numbers that an attribute has in all elements whose line has `mark`.
    fn numbers(svg: &str, mark: &str, attribute: &str) -> Vec<f64> {
        let value = |line: &str| {
            let (_, rest) = line.split_once(&format!(" {attribute}=\""))?;
            rest.split_once('"')?.0.parse().ok()
        };
        svg.lines().filter(|line| line.contains(mark)).filter_map(value).collect()
    }

    #[test]
    fn every_element_ends_and_text_is_text() {
        let svg = draw(&table(&["wirevm", "<x>"], &[("a & b", &[&[1.0, 2.0], &[]])]), &[None]);
        let mut open = Vec::new();
        for tag in svg.split('<').skip(1) {
            let (tag, after) = tag.split_once('>').expect("a tag ends");
            assert!(!after.contains('>'), "{after}");
            match tag.strip_prefix('/') {
                Some(name) => assert_eq!(open.pop(), Some(name)),
                None if tag.ends_with('/') => {}
                None => open.push(tag.split(' ').next().expect("a name")),
            }
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        }
        assert!(open.is_empty(), "{open:?}");
        for said in ["A &lt; B &amp; C", ">a &amp; b<", ">&lt;x&gt;<"] {
            assert!(svg.contains(said), "{said}: {svg}");
        }
    }

    #[test]
    fn bars_are_to_the_scale_of_their_panel() {
        let rows: [(&str, &[&[f64]]); 2] =
            [("a", &[&[10.0, 20.0, 40.0], &[10.0]]), ("b", &[&[5000.0], &[2500.0]])];
        let svg = draw(&table(&["wirevm", "other"], &rows), &[Some(Better::Less), None]);
        let widths = |colour: &str| numbers(&svg, &format!("height=\"10\" fill=\"{colour}\""), "width");
        let (ours, theirs) = (widths(OURS[0]), widths(THEIRS[0]));
        assert_eq!((ours.len(), theirs.len()), (2, 2));
        // The whisker to 40 needs twice the width of the median.
        assert!((ours[0] - 2.0 * theirs[0]).abs() < 0.2 && (ours[1] - 2.0 * ours[0]).abs() < 0.2, "{svg}");
        assert_eq!(svg.matches("<path").count(), 1, "a whisker where there are several rounds: {svg}");
        assert!(svg.contains(">ms, less is better<") && svg.contains(">ms<"), "{svg}");
    }

    #[test]
    fn what_was_not_measured_has_no_bar() {
        let svg = draw(&table(&["wirevm", "other"], &[("a", &[&[1.0], &[]])]), &[None]);
        assert!(svg.contains(">-</text>") && !svg.contains(THEIRS[0]), "{svg}");
    }

    #[test]
    fn all_is_within_the_picture() {
        let cells: &[&[f64]] = &[&[1.0, 3.0], &[2.0]];
        let svg = draw(&table(&["wirevm", "other"], &[("a", cells); 7]), &[None; 7]);
        let height = numbers(&svg, "<svg", "height")[0];
        for (attribute, limit) in [("x", WIDTH), ("y", height)] {
            let places = numbers(&svg, "<text", attribute);
            assert!(places.iter().all(|&at| at > 0.0 && at < limit), "{places:?}");
        }
    }
}
