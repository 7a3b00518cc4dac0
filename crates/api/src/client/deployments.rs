//! What an operator does about deployments that are under way.

use fleet::ids::DeploymentId;
use fleet::preview::Preview;
use fleet::report::Report;
use reqwest::Method;

use super::{Client, ClientError};
use crate::operator::{DeploymentView, NewDeployment, PauseRequest, ResumeRequest, RetryRequest};

impl Client {
    /// Lets nothing new start in a deployment, or in one rack of it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn pause(&self, id: DeploymentId, request: &PauseRequest) -> Result<DeploymentView, ClientError> {
        self.send(Method::POST, &format!("/api/v1/deployments/{id}/pause"), request).await
    }

    /// Lets a paused deployment go on, or one rack of it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn resume(&self, id: DeploymentId, request: &ResumeRequest) -> Result<DeploymentView, ClientError> {
        self.send(Method::POST, &format!("/api/v1/deployments/{id}/resume"), request).await
    }

    /// Has failed nodes tried again.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn retry(&self, id: DeploymentId, request: &RetryRequest) -> Result<DeploymentView, ClientError> {
        self.send(Method::POST, &format!("/api/v1/deployments/{id}/retry"), request).await
    }

    /// What a deployment would do; nothing is changed.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn preview(&self, deployment: &NewDeployment) -> Result<Preview, ClientError> {
        self.send(Method::POST, "/api/v1/deployments/preview", deployment).await
    }

    /// What a deployment came to so far.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn report_of(&self, id: DeploymentId) -> Result<Report, ClientError> {
        self.get(&format!("/api/v1/deployments/{id}/report")).await
    }
}
