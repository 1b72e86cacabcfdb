//! How often each deployment of a group is asked.

use super::deployment::Deployment;

/// No share is greater than this one.
const LARGEST: f64 = 1e6;

/// By `weight` where a deployment has one, or else by `rpm`, or else by `tpm`: what has none has no share then. Where
/// there are none at all, all are alike.
pub(super) fn shares(deployments: &[Deployment]) -> Vec<u64> {
    let metrics: [fn(&Deployment) -> f64; 3] = [|one| one.weight, |one| one.rpm, |one| one.tpm];
    let mut told = metrics.iter().map(|metric| deployments.iter().map(metric).collect::<Vec<_>>());
    match told.find(|shares| shares.iter().any(|share| *share > 0.0)) {
        Some(shares) => scaled(&shares),
        None => vec![1; deployments.len()],
    }
}

/// Whole numbers in the same proportion, as small as they can be.
fn scaled(shares: &[f64]) -> Vec<u64> {
    let largest = shares.iter().copied().fold(0.0, f64::max);
    let is_whole = |share: f64| share <= 0.0 || (share / share.round() - 1.0).abs() < 1e-6;
    let fits = |scale: &f64| largest * scale <= LARGEST && shares.iter().all(|share| is_whole(share * scale));
    let scale = (0..=6).map(|places| 10_f64.powi(places)).find(fits).unwrap_or(LARGEST / largest);
    // A share is never rounded to none.
    let whole = |share: &f64| match *share > 0.0 {
        true => (share * scale).round().clamp(1.0, LARGEST) as u64,
        false => 0,
    };
    let whole: Vec<u64> = shares.iter().map(whole).collect();
    let divisor = whole.iter().copied().fold(0, common_divisor).max(1);
    whole.into_iter().map(|share| share / divisor).collect()
}

const fn common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::scaled;

    #[test]
    fn shares_keep_their_proportion() {
        for (told, expected) in [
            (vec![3.0, 0.0], vec![1, 0]),
            (vec![0.9, 0.1], vec![9, 1]),
            (vec![0.25, 0.75], vec![1, 3]),
            (vec![2.0, 4.0, -1.0], vec![1, 2, 0]),
            (vec![1e12, 5e11], vec![2, 1]),
            (vec![1.0, 1e-12], vec![1_000_000, 1]),
            (vec![5e-324, 5e-324], vec![1, 1]),
        ] {
            assert_eq!(scaled(&told), expected, "{told:?}");
        }
    }
}
