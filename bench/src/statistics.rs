//! The few numbers that stand for many. Pure.

/// The middle one, or the mean of the two in the middle.
///
/// # Panics
/// When there is none.
pub(crate) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The value below which this share of the values lies, between two neighbours in proportion.
///
/// # Panics
/// When there is none.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    assert!(!values.is_empty(), "no values, no quantile");
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = share.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * place.fract()
}

/// Each value over its companion of the same round. Companions saw the same moods of the machine, so their ratios vary
/// less than they do.
pub(crate) fn ratios(values: &[f64], companions: &[f64]) -> Vec<f64> {
    pairs(values, companions, |value, companion| value / companion)
}

/// Each value less its companion of the same round.
pub(crate) fn differences(values: &[f64], companions: &[f64]) -> Vec<f64> {
    pairs(values, companions, |value, companion| value - companion)
}

fn pairs(values: &[f64], companions: &[f64], of: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    assert_eq!(
        values.len(),
        companions.len(),
        "rounds have all contestants"
    );
    let pairs = values.iter().zip(companions);
    pairs
        .map(|(value, companion)| of(*value, *companion))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let check = |values: &[f64], expected: f64| {
            assert_eq!(median(values), expected, "{values:?}");
        };
        check(&[7.0], 7.0);
        check(&[3.0, 1.0, 2.0], 2.0);
        check(&[4.0, 1.0, 2.0, 3.0], 2.5);
        check(&[1.0, 1.0, 1.0, 1000.0, 1.0], 1.0);
    }

    #[test]
    fn quantiles_lie_between_the_extremes() {
        let values: Vec<f64> = (0..=100).map(f64::from).collect();
        let check = |share, expected: f64| {
            let found = quantile(&values, share);
            assert!((found - expected).abs() < 1e-9, "{share}: {found}");
        };
        check(0.0, 0.0);
        check(0.25, 25.0);
        check(0.995, 99.5);
        check(1.0, 100.0);
    }

    #[test]
    fn companions_are_those_of_the_same_round() {
        assert_eq!(ratios(&[9.0, 20.0], &[10.0, 10.0]), [0.9, 2.0]);
        assert_eq!(differences(&[9.0, 20.0], &[10.0, 10.0]), [-1.0, 10.0]);
    }
}
