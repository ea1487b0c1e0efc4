//! Plain aligned columns, as `ps` and `ls` print them: no frames, two spaces apart.

use comfy_table::{Cell, CellAlignment, ContentArrangement, presets};

/// How a column is aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// A table under construction.
#[derive(Debug)]
pub(crate) struct Table {
    table: comfy_table::Table,
    aligns: Vec<Align>,
}

impl Table {
    /// A table with these columns.
    pub(crate) fn new(columns: &[(&str, Align)]) -> Self {
        let mut table = bare();
        let aligns: Vec<Align> = columns.iter().map(|column| column.1).collect();
        table.set_header(columns.iter().map(|(name, align)| cell((*name).to_owned(), *align)));
        narrow_padding(&mut table);
        Self { table, aligns }
    }

    /// Adds a row; one cell a column.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        let cells = cells.into_iter().zip(&self.aligns).map(|(text, align)| cell(text, *align));
        self.table.add_row(cells);
        narrow_padding(&mut self.table);
    }

    /// The lines, each ended, or `nothing` when there is no row.
    pub(crate) fn render(&self, nothing: &str) -> String {
        let text = if self.table.is_empty() { nothing.to_owned() } else { self.table.trim_fmt() };
        text + "\n"
    }
}

/// `NAME  value` lines, one a field, fields with nothing to say left out.
pub(crate) fn fields(rows: &[(&str, String)]) -> String {
    let mut table = bare();
    for (name, value) in rows.iter().filter(|(_, value)| !value.is_empty()) {
        table.add_row([Cell::new(name), Cell::new(value)]);
    }
    narrow_padding(&mut table);
    table.trim_fmt() + "\n"
}

fn bare() -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table
}

/// Columns stand two spaces apart and start at the margin.
fn narrow_padding(table: &mut comfy_table::Table) {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
}

fn cell(text: String, align: Align) -> Cell {
    let alignment = match align {
        Align::Left => CellAlignment::Left,
        Align::Right => CellAlignment::Right,
    };
    // A cell is one line: text from elsewhere must not break the table.
    Cell::new(text.replace(['\n', '\r', '\t'], " ")).set_alignment(alignment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_without_frames() {
        let mut table = Table::new(&[("HOST", Align::Left), ("CPU", Align::Right)]);
        table.row(["a".into(), "5m".into()]);
        table.row(["host-b".into(), "1500m\nx".into()]);
        assert_eq!(table.render("no hosts"), "HOST        CPU\na            5m\nhost-b  1500m x\n");
    }

    #[test]
    fn an_empty_table_says_so() {
        assert_eq!(Table::new(&[("HOST", Align::Left)]).render("no hosts"), "no hosts\n");
    }

    #[test]
    fn fields_without_a_value_are_left_out() {
        let shown = fields(&[("name", "a".into()), ("paused because", String::new())]);
        assert_eq!(shown, "name  a\n");
    }
}
