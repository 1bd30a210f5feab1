//! Takes the keys of one TOML table with their types and places, and reports every other key.

use std::{
    ops::{Range, RangeInclusive},
    str::FromStr,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::config::report::{Report, nearest};

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field<T> {
    /// the value
    pub value: T,
    /// where it stands, in octets from the start of the file
    pub span: Range<usize>,
}

/// Reads one table. Every key that is asked for counts as known; [`TableReader::finish`] reports
/// the others.
pub struct TableReader<'a, 'r, 's> {
    table: &'a DeTable<'a>,
    /// where the table begins: for what is missing in it
    pub span: Range<usize>,
    /// what the table is to the operator, for instance `[[connection]]`
    name: &'static str,
    known: Vec<&'static str>,
    /// where problems go
    pub report: &'r mut Report<'s>,
}

impl<'a, 'r, 's> TableReader<'a, 'r, 's> {
    /// A reader of `table`, which begins at `span`.
    pub fn new(
        table: &'a DeTable<'a>,
        span: Range<usize>,
        name: &'static str,
        report: &'r mut Report<'s>,
    ) -> Self {
        TableReader { table, span, name, known: Vec::new(), report }
    }

    /// The raw value of `key`.
    pub fn value(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.known.push(key);
        self.table.get(key)
    }

    /// Where `key` itself stands, if it is there.
    pub fn key_span(&self, key: &str) -> Option<Range<usize>> {
        self.table.get_key_value(key).map(|(key, _)| key.span())
    }

    /// A string; `expected` says what it is to hold, for instance `a name or an address`.
    pub fn string(&mut self, key: &'static str, expected: &str) -> Option<Field<&'a str>> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::String(text) => Some(Field { value: text, span: value.span() }),
            other => {
                self.wrong_type(key, other, &value.span(), &format!("{expected} in quotes"));
                None
            }
        }
    }

    /// `true` or `false`.
    pub fn bool(&mut self, key: &'static str) -> Option<Field<bool>> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::Boolean(yes) => Some(Field { value: *yes, span: value.span() }),
            other => {
                self.wrong_type(key, other, &value.span(), "true or false");
                None
            }
        }
    }

    /// A whole number within `range`; `unit` is a word for the message, for instance `seconds`.
    pub fn number(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
        unit: &str,
    ) -> Option<Field<u64>> {
        let value = self.value(key)?;
        let expected = format!("a number of {unit} from {} to {}", range.start(), range.end());
        let DeValue::Integer(number) = value.get_ref() else {
            self.wrong_type(key, value.get_ref(), &value.span(), &expected);
            return None;
        };
        match u64::from_str_radix(number.as_str(), number.radix()) {
            Ok(n) if range.contains(&n) => Some(Field { value: n, span: value.span() }),
            _ => {
                let text = format!("{key} is {}; expected {expected}", number.as_str());
                self.report.add(&value.span(), text);
                None
            }
        }
    }

    /// A list of strings.
    pub fn strings(&mut self, key: &'static str, expected: &str) -> Option<Vec<Field<&'a str>>> {
        let value = self.value(key)?;
        let expected = format!("a list such as [{expected}]");
        let DeValue::Array(array) = value.get_ref() else {
            self.wrong_type(key, value.get_ref(), &value.span(), &expected);
            return None;
        };
        let mut out = Vec::new();
        for item in array.iter() {
            match item.get_ref() {
                DeValue::String(text) => out.push(Field { value: &**text, span: item.span() }),
                other => self.wrong_type(key, other, &item.span(), &expected),
            }
        }
        Some(out)
    }

    /// A string, or a list of them.
    pub fn one_or_more(
        &mut self,
        key: &'static str,
        expected: &str,
    ) -> Option<Vec<Field<&'a str>>> {
        match self.table.get(key).map(Spanned::get_ref) {
            Some(DeValue::Array(_)) => self.strings(key, &format!("{expected}, …")),
            _ => self.string(key, expected).map(|field| vec![field]),
        }
    }

    /// A list of strings, each parsed; `Some` if the key is there, whatever is wrong inside.
    pub fn list<T: FromStr>(
        &mut self,
        key: &'static str,
        what: &str,
        example: &str,
    ) -> Option<Vec<Field<T>>> {
        let fields = self.strings(key, example)?;
        let mut out = Vec::new();
        for field in fields {
            match field.value.parse() {
                Ok(value) => out.push(Field { value, span: field.span }),
                Err(_) => {
                    let text = format!("{:?} is not {what}; expected {example}", field.value);
                    self.report.add(&field.span, text);
                }
            }
        }
        Some(out)
    }

    /// One word out of a few.
    pub fn word<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)]) -> Option<T> {
        let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
        let quoted: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
        let expected = quoted.join(" or ");
        let value = self.value(key)?;
        let DeValue::String(word) = value.get_ref() else {
            self.wrong_type(key, value.get_ref(), &value.span(), &expected);
            return None;
        };
        let found = words.iter().find(|(name, _)| *name == word);
        if found.is_none() {
            let hint = match nearest(word, &names) {
                Some(name) => format!("; did you mean {name:?}?"),
                None => String::new(),
            };
            let text = format!("{key} is {word:?}; expected {expected}{hint}");
            self.report.add(&value.span(), text);
        }
        found.map(|(_, value)| *value)
    }

    /// Reports that something is missing in this table, at its beginning.
    pub fn missing(&mut self, text: impl Into<String>) {
        let span = self.span.clone();
        self.report.add(&span, text);
    }

    /// Reports `key`, if it is there, as out of place: `why` follows the key's name.
    pub fn refuse(&mut self, key: &'static str, why: &str) {
        self.known.push(key);
        if let Some(span) = self.key_span(key) {
            self.report.add(&span, format!("{key} {why}"));
        }
    }

    /// Reports every key that nobody has asked for.
    pub fn finish(self) {
        for key in self.table.keys() {
            let name = key.get_ref().as_ref();
            if self.known.contains(&name) {
                continue;
            }
            let remedy = match nearest(name, &self.known) {
                Some(near) => format!("did you mean {near}?"),
                None => {
                    let mut known = self.known.clone();
                    known.sort_unstable();
                    known.dedup();
                    format!("known here: {}", known.join(", "))
                }
            };
            self.report.add(&key.span(), format!("unknown key {name} in {}; {remedy}", self.name));
        }
    }

    fn wrong_type(&mut self, key: &str, found: &DeValue<'_>, span: &Range<usize>, expected: &str) {
        let found = type_name(found);
        self.report.add(span, format!("{key} is {found}; expected {expected}"));
    }
}

/// What a value is, in a person's words.
pub fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
