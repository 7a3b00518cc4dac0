//! The fluid model of Qiu and Srikant that the seed paper's section IV.B
//! compares with: formulas (5) and (6).

/// A swarm as the model sees it; rates in copies of the file per second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fluid {
    /// Uplink of a peer: payload rate over the file's bytes.
    pub mu: f64,
    /// Downlink of a peer.
    pub c: f64,
    /// How well downloaders share, 0 to 1.
    pub eta: f64,
    /// Newcomers per second.
    pub lambda: f64,
    /// Rate at which downloaders give up.
    pub theta: f64,
    /// Rate at which seeds leave.
    pub gamma: f64,
}

/// The balance of a swarm in which peers come and go.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Steady {
    /// Mean seconds of a download.
    pub seconds: f64,
    /// Downloaders.
    pub downloaders: f64,
    /// Seeds.
    pub seeds: f64,
}

/// A moment of the integration.
#[derive(Debug, Clone, Copy, PartialEq)]
struct State {
    downloaders: f64,
    seeds: f64,
}

impl Fluid {
    /// Formula (5), where downlinks do not bind.
    fn slope(&self, state: State, lambda: f64) -> State {
        let service =
            if state.downloaders > 0.0 { self.mu * (self.eta * state.downloaders + state.seeds) } else { 0.0 };
        State {
            downloaders: lambda - self.theta * state.downloaders - service,
            seeds: service - self.gamma * state.seeds,
        }
    }

    /// The balance, where peers leave at all.
    pub fn steady(&self) -> Option<Steady> {
        if self.gamma <= 0.0 || self.lambda <= 0.0 {
            return None;
        }
        let upload = (1.0 / self.mu - 1.0 / self.gamma) / self.eta;
        let beta = 1.0 / (1.0 / self.c).max(upload);
        let leaving = 1.0 + self.theta / beta;
        Some(Steady {
            seconds: 1.0 / (self.theta + beta),
            downloaders: self.lambda / (beta * leaving),
            seeds: self.lambda / (self.gamma * leaving),
        })
    }

    /// Formula (6): seconds until `nodes` that begin together are served,
    /// with `seeds` seeds that stay, when downlinks do not bind. In seconds.
    pub fn batch(&self, nodes: f64, seeds: f64) -> f64 {
        let all = nodes + seeds;
        let rest = 1.0 - self.eta;
        if rest < 1e-9 {
            return nodes / all / self.mu;
        }
        (all / (all - rest * nodes)).ln() / rest / self.mu
    }

    /// Formula (5) by Runge and Kutta's method: seconds until none of `nodes`
    /// is left. They come at `lambda` a second, or are all there at once
    /// where that is 0. The term c x of the formula would give the end an
    /// exponential tail; files have a size, so the last is served 1/c after
    /// it came, and that is put in its place.
    pub fn integrate(&self, nodes: f64, seeds: f64) -> f64 {
        let coming = if self.lambda > 0.0 { nodes / self.lambda } else { 0.0 };
        let mut state = State { downloaders: if coming > 0.0 { 0.0 } else { nodes }, seeds };
        let step = 1.0 / self.mu / 2000.0;
        let limit = coming + 1000.0 * (nodes / seeds.max(1.0)).max(1.0) / self.mu;
        let mut time = 0.0;
        while time < limit {
            let before = state.downloaders;
            state = self.advance(state, if time < coming { self.lambda } else { 0.0 }, step);
            time += step;
            if state.downloaders <= 0.0 && time >= coming {
                // Within the last step: where it crossed zero.
                let part = before / (before - state.downloaders).max(f64::MIN_POSITIVE);
                return (time - step + step * part.clamp(0.0, 1.0)).max(coming + 1.0 / self.c);
            }
            state.downloaders = state.downloaders.max(0.0);
        }
        f64::INFINITY
    }

    fn advance(&self, at: State, lambda: f64, step: f64) -> State {
        let go = |slope: State, by: f64| State {
            downloaders: at.downloaders + slope.downloaders * by,
            seeds: at.seeds + slope.seeds * by,
        };
        let first = self.slope(at, lambda);
        let second = self.slope(go(first, step / 2.0), lambda);
        let third = self.slope(go(second, step / 2.0), lambda);
        let fourth = self.slope(go(third, step), lambda);
        let mean = |f: fn(&State) -> f64| (f(&first) + 2.0 * f(&second) + 2.0 * f(&third) + f(&fourth)) / 6.0;
        go(State { downloaders: mean(|s| s.downloaders), seeds: mean(|s| s.seeds) }, step)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn closed(eta: f64) -> Fluid {
        Fluid { mu: 1.0, c: 1e6, eta, lambda: 0.0, theta: 0.0, gamma: 0.0 }
    }

    /// The row under formula (6) in p2p.md 1.7: 230 nodes, one seed.
    #[test]
    fn a_batch_takes_what_the_closed_form_says() {
        for (eta, expected) in [(0.5, 1.378), (0.8, 1.110), (0.9, 1.049), (0.95, 1.021), (0.99, 1.001)] {
            let seconds = closed(eta).batch(230.0, 1.0);
            assert!((seconds - expected).abs() < 6e-4, "{eta}: {seconds}");
        }
        assert!((closed(1.0).batch(230.0, 1.0) - 230.0 / 231.0).abs() < 1e-9);
        assert!((closed(0.0).batch(230.0, 1.0) - 231.0_f64.ln()).abs() < 1e-9);
    }

    #[test]
    fn integration_and_closed_form_agree() {
        for eta in [0.3, 0.5, 0.9, 0.99] {
            let fluid = Fluid { c: 50.0, ..closed(eta) };
            let (numeric, exact) = (fluid.integrate(230.0, 1.0), fluid.batch(230.0, 1.0));
            assert!((numeric / exact - 1.0).abs() < 0.01, "{eta}: {numeric} {exact}");
        }
    }

    #[test]
    fn a_narrow_downlink_is_the_limit() {
        let fluid = Fluid { c: 0.5, ..closed(1.0) };
        let seconds = fluid.integrate(100.0, 50.0);
        assert!((seconds - 2.0).abs() < 0.01, "{seconds}");
    }

    #[test]
    fn nodes_that_come_slowly_finish_after_the_last_came() {
        let fluid = Fluid { lambda: 10.0, c: 2.0, ..closed(0.95) };
        let seconds = fluid.integrate(230.0, 1.0);
        assert!((23.0..24.5).contains(&seconds), "{seconds}");
    }

    #[test]
    fn the_balance_is_that_of_the_paper() {
        let fluid = Fluid { mu: 0.00125, c: 0.002, eta: 1.0, lambda: 0.04, theta: 0.001, gamma: 0.001 };
        let steady = fluid.steady().unwrap();
        // 1/beta = max(500, 800 - 1000) = 500.
        assert!((steady.seconds - 1.0 / 0.003).abs() < 1e-9);
        assert!((steady.downloaders - 0.04 / 0.003).abs() < 1e-9);
        assert_eq!(closed(1.0).steady(), None);
    }
}
