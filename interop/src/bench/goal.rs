//! What bewick is to reach beside strongSwan.

use std::fmt;

use serde::Serialize;

use crate::peer::Program;

/// Where a figure is to be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Not beyond this.
    AtMost(f64),
    /// Not below this.
    AtLeast(f64),
}

/// A goal, and whether it is met.
#[derive(Debug, PartialEq, Serialize)]
pub struct Goal {
    /// What is held against it.
    pub what: String,
    /// What was measured; none if one of the two has nothing to compare.
    pub figure: Option<f64>,
    /// Where that is to be.
    #[serde(flatten)]
    pub bound: Bound,
    /// Whether it is there.
    pub met: bool,
}

impl Bound {
    fn holds(self, figure: f64) -> bool {
        match self {
            Bound::AtMost(most) => figure <= most,
            Bound::AtLeast(least) => figure >= least,
        }
    }
}

impl Goal {
    /// A figure of bewick's by itself; having none is no way to meet a goal.
    pub fn figure(what: impl Into<String>, figure: Option<f64>, bound: Bound) -> Self {
        let met = figure.is_some_and(|figure| bound.holds(figure));
        Self { what: what.into(), figure, bound, met }
    }

    /// A figure of bewick's by the same of strongSwan's. Where strongSwan has none, having one is enough.
    pub fn ratio(what: &str, bewick: Option<f64>, strongswan: Option<f64>, bound: Bound) -> Self {
        let what = format!("{what}, bewick's by strongSwan's");
        match (bewick, strongswan) {
            (Some(ours), Some(theirs)) => Self::figure(what, Some(ours / theirs), bound),
            (ours, _) => Self { what, figure: None, bound, met: ours.is_some() },
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, figure, bound, met } = self;
        let word = if *met { "met" } else { "MISSED" };
        let figure = figure.map_or("none".to_owned(), short);
        let (side, limit) = match bound {
            Bound::AtMost(most) => ("at most", short(*most)),
            Bound::AtLeast(least) => ("at least", short(*least)),
        };
        write!(f, "goal {word}: {what}: {figure}, {side} {limit}")
    }
}

/// With decimals where they tell something.
fn short(figure: f64) -> String {
    if figure.fract() == 0.0 || figure >= 100.0 {
        format!("{figure:.0}")
    } else {
        format!("{figure:.2}")
    }
}

/// What came of bewick's turns and of strongSwan's, if both took part.
pub fn both<T>(results: &[(Program, T)]) -> Option<(&T, &T)> {
    let of = |program| Some(&results.iter().find(|(of, _)| *of == program)?.1);
    of(Program::Bewick).zip(of(Program::Strongswan))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ratio(bewick: Option<f64>, strongswan: Option<f64>, bound: Bound) -> (Option<f64>, bool) {
        let goal = Goal::ratio("gap", bewick, strongswan, bound);
        (goal.figure, goal.met)
    }

    #[test]
    fn what_is_just_at_the_bound_meets_it() {
        let fifth = Bound::AtMost(0.2);
        assert_eq!(ratio(Some(2.0), Some(10.0), fifth), (Some(0.2), true));
        assert_eq!(ratio(Some(3.0), Some(10.0), fifth), (Some(0.3), false));
        let twice = Bound::AtLeast(2.0);
        assert_eq!(ratio(Some(10.0), Some(5.0), twice), (Some(2.0), true));
        assert_eq!(ratio(Some(9.0), Some(5.0), twice), (Some(1.8), false));
    }

    #[test]
    fn who_has_nothing_meets_nothing_and_beats_nobody() {
        for bound in [Bound::AtMost(0.2), Bound::AtLeast(2.0)] {
            assert_eq!(ratio(None, Some(5.0), bound), (None, false));
            assert_eq!(ratio(None, None, bound), (None, false));
            assert_eq!(ratio(Some(5.0), None, bound), (None, true));
            assert!(!Goal::figure("gap", None, bound).met);
        }
        // Nothing is less than no gap, and anything more than no rate.
        assert!(!ratio(Some(0.1), Some(0.0), Bound::AtMost(0.2)).1);
        assert!(ratio(Some(0.1), Some(0.0), Bound::AtLeast(2.0)).1);
    }

    #[test]
    fn both_take_part_or_nothing_is_compared() {
        let (ours, theirs) = ((Program::Bewick, 1), (Program::Strongswan, 2));
        assert_eq!(both(&[theirs, ours]), Some((&1, &2)));
        assert_eq!(both(&[ours]), None);
        assert_eq!(both(&[theirs]), None);
    }

    #[test]
    fn a_goal_is_a_line_and_an_object() {
        let goal = Goal::ratio("gap p50", Some(2.0), Some(109.4), Bound::AtMost(0.2));
        let line = "goal met: gap p50, bewick's by strongSwan's: 0.02, at most 0.20";
        assert_eq!(goal.to_string(), line);
        let goal = Goal::figure("IKE_SAs lost", Some(1.0), Bound::AtMost(0.0));
        assert_eq!(goal.to_string(), "goal MISSED: IKE_SAs lost: 1, at most 0");
        let object = serde_json::json!(
            { "what": "IKE_SAs lost", "figure": 1.0, "at_most": 0.0, "met": false }
        );
        assert_eq!(serde_json::to_value(&goal).ok(), Some(object));
    }
}
