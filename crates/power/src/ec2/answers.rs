//! The XML that EC2 answers with, as far as we read it. Pure.

use roxmltree::{Document, Node};

use crate::State;
use crate::set::Image;

type Wrong<T> = std::result::Result<T, String>;

/// Tag that tells whose wish an instance is.
pub(super) const TOKEN_TAG: &str = "rackswarm:token";

/// An instance as described.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Instance {
    pub(super) id: String,
    pub(super) state: String,
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) token: Option<String>,
    pub(super) macs: Vec<String>,
    pub(super) addresses: Vec<String>,
}

impl Instance {
    pub(super) fn power(&self) -> State {
        match self.state.as_str() {
            "running" => State::On,
            "stopped" | "terminated" => State::Off,
            _ => State::Unknown,
        }
    }

    /// Whether it is terminated or on its way there.
    pub(super) fn is_ended(&self) -> bool {
        matches!(self.state.as_str(), "terminated" | "shutting-down")
    }
}

/// All instances of an answer to DescribeInstances or RunInstances, and the token of the next page.
pub(super) fn instances(xml: &str) -> Wrong<(Vec<Instance>, Option<String>)> {
    let document = parse(xml)?;
    let found = document
        .descendants()
        .filter(|node| node.has_tag_name_only("instancesSet"))
        .flat_map(|set| set.children())
        .filter(|item| item.has_tag_name_only("item"))
        .map(instance)
        .collect();
    let next = text(document.root_element(), "nextToken").filter(|token| !token.is_empty());
    Ok((found, next))
}

fn instance(item: Node<'_, '_>) -> Instance {
    let tag = |key: &str| {
        let tags = child(item, "tagSet")?;
        let one = tags.children().find(|tag| text(*tag, "key").as_deref() == Some(key))?;
        text(one, "value")
    };
    let cards = child(item, "networkInterfaceSet").into_iter().flat_map(|set| set.children());
    let mut addresses: Vec<String> =
        ["privateIpAddress", "ipAddress", "ipv6Address"].iter().filter_map(|name| text(item, name)).collect();
    addresses.retain(|address| !address.is_empty());
    Instance {
        id: text(item, "instanceId").unwrap_or_default(),
        state: child(item, "instanceState").and_then(|state| text(state, "name")).unwrap_or_default(),
        kind: text(item, "instanceType").unwrap_or_default(),
        name: tag("Name").unwrap_or_default(),
        token: tag(TOKEN_TAG),
        macs: cards.filter_map(|card| text(card, "macAddress")).map(|mac| mac.to_lowercase()).collect(),
        addresses,
    }
}

/// All images of an answer to DescribeImages.
pub(super) fn images(xml: &str) -> Wrong<Vec<Image>> {
    let document = parse(xml)?;
    let sets = document.descendants().filter(|node| node.has_tag_name_only("imagesSet"));
    Ok(sets
        .flat_map(|set| set.children())
        .filter(|item| item.has_tag_name_only("item"))
        .map(|item| Image {
            id: text(item, "imageId").unwrap_or_default(),
            name: text(item, "name").unwrap_or_default(),
            ready: text(item, "imageState").as_deref() == Some("available"),
        })
        .collect())
}

/// The text of the first element of that name, wherever it is.
pub(super) fn anywhere(xml: &str, name: &str) -> Wrong<Option<String>> {
    let document = parse(xml)?;
    let node = document.descendants().find(|node| node.has_tag_name_only(name));
    Ok(node.and_then(|node| node.text()).map(|text| text.trim().to_owned()))
}

fn parse(xml: &str) -> Wrong<Document<'_>> {
    Document::parse(xml)
        .map_err(|error| format!("its answer is no XML that we can read ({error}); is this an EC2 endpoint?"))
}

fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|one| one.has_tag_name_only(name))
}

fn text(node: Node<'_, '_>, name: &str) -> Option<String> {
    child(node, name)?.text().map(|text| text.trim().to_owned())
}

/// Compatible clouds differ in the namespace, never in the names.
trait AnyNamespace {
    fn has_tag_name_only(&self, name: &str) -> bool;
}

impl AnyNamespace for Node<'_, '_> {
    fn has_tag_name_only(&self, name: &str) -> bool {
        self.is_element() && self.tag_name().name() == name
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    const PAGE: &str = r#"<DescribeInstancesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><reservationSet><item>
        <instancesSet><item><instanceId>i-1</instanceId><instanceState><code>16</code><name>running</name></instanceState>
        <instanceType>t3.small</instanceType><privateIpAddress>10.0.0.7</privateIpAddress><ipAddress/>
        <networkInterfaceSet><item><macAddress>02:AA:00:00:00:01</macAddress></item></networkInterfaceSet>
        <tagSet><item><key>rackswarm:token</key><value>web</value></item></tagSet></item></instancesSet></item></reservationSet>
        <nextToken>page2</nextToken></DescribeInstancesResponse>"#;

    #[test]
    fn instances_are_read_whatever_the_namespace() {
        for page in [
            PAGE.to_owned(),
            PAGE.replace("ec2.amazonaws.com", "cloud.example"),
            PAGE.replace(" xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"", ""),
        ] {
            let (found, next) = instances(&page).unwrap();
            assert_eq!(next.as_deref(), Some("page2"));
            assert_eq!(found[0].token.as_deref(), Some("web"));
            assert_eq!((found[0].power(), found[0].is_ended()), (State::On, false));
            assert_eq!(found[0].macs, ["02:aa:00:00:00:01"]);
            assert_eq!(found[0].addresses, ["10.0.0.7"]);
        }
    }

    #[test]
    fn only_running_is_on_and_what_ends_does_not_come_back() {
        for (word, power, ended) in [
            ("pending", State::Unknown, false),
            ("stopping", State::Unknown, false),
            ("stopped", State::Off, false),
            ("shutting-down", State::Unknown, true),
            ("terminated", State::Off, true),
        ] {
            let instance = Instance { state: word.into(), ..Instance::default() };
            assert_eq!((instance.power(), instance.is_ended()), (power, ended), "{word}");
        }
    }

    #[test]
    fn images_and_errors_are_read_and_a_web_page_is_not() {
        let page = "<R><imagesSet><item><imageId>ami-1</imageId><imageState>pending</imageState><name>n</name></item></imagesSet></R>";
        assert_eq!(images(page).unwrap(), [Image { id: "ami-1".into(), name: "n".into(), ready: false }]);
        let error = "<Response><Errors><Error><Code>AuthFailure</Code></Error></Errors></Response>";
        assert_eq!(anywhere(error, "Code").unwrap().as_deref(), Some("AuthFailure"));
        assert!(instances("<html><br>").unwrap_err().contains("EC2 endpoint"));
    }
}
