//! What Terraform asks of a VPC besides: its attributes and its main route table, which has the route within the VPC alone.

use super::filter::{Column, Columns, Filters};
use super::page::Page;
use super::places::{Vpc, all_vpcs, no_vpc};
use crate::api::call::{Call, Outcome};
use crate::api::fault::{Code, Refusal};
use crate::api::xml::Xml;

pub(super) fn attribute(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let id = call.params.required("VpcId")?;
    let vpcs = all_vpcs(call);
    let vpc = vpcs.get(id).ok_or_else(|| no_vpc(id))?;
    let name = call.params.required("Attribute")?;
    let value = match name {
        "enableDnsHostnames" => vpc.has_dns_hostnames,
        "enableDnsSupport" => true,
        "enableNetworkAddressUsageMetrics" => false,
        _ => {
            return Err(Refusal::invalid_value(
                name,
                "attribute",
                "Unknown attribute.",
            ));
        }
    };
    Ok(call.ec2_reply(|xml| {
        xml.el("vpcId", vpc.id).within(name, |xml| {
            xml.el("value", value);
        });
    }))
}

/// The id follows from the VPC's, which has one route table.
fn table_id(vpc: &Vpc) -> String {
    format!("rtb-{}", digits(vpc))
}

fn association_id(vpc: &Vpc) -> String {
    format!("rtbassoc-{}", digits(vpc))
}

fn digits(vpc: &Vpc) -> &str {
    vpc.id.as_str().trim_start_matches("vpc-")
}

pub(super) fn route_tables(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let vpcs = all_vpcs(call);
    let ids = call.params.texts("RouteTableId")?;
    for id in &ids {
        if !vpcs.values().any(|vpc| table_id(vpc) == *id) {
            let message = format!("The routeTable ID '{id}' does not exist");
            return Err(Refusal::new(Code::InvalidRouteTableIdNotFound, message));
        }
    }
    let by_name: &[(&'static str, Column<Vpc>)] = &[
        ("association.main", |_| vec![true.to_string()]),
        ("association.route-table-association-id", |vpc| {
            vec![association_id(vpc)]
        }),
        ("association.route-table-id", |vpc| vec![table_id(vpc)]),
        // Subnets have it because they name no other.
        ("association.subnet-id", |_| vec![]),
        ("route-table-id", |vpc| vec![table_id(vpc)]),
        ("vpc-id", |vpc| vec![vpc.id.to_string()]),
    ];
    let tags = None;
    let filters = Filters::read(&call.params, &Columns { by_name, tags })?;
    let page = Page::read(&call.params, 5..=100)?;
    let wanted = vpcs.into_values().filter(|vpc| {
        let is_named = ids.is_empty() || ids.contains(&&*table_id(vpc));
        is_named && filters.hold(vpc)
    });
    let part = page.cut(wanted, table_id);
    Ok(call.ec2_reply(|xml| {
        xml.list("routeTableSet", &part.items, |xml, vpc| {
            xml.el("routeTableId", table_id(vpc))
                .el("vpcId", vpc.id)
                .el("ownerId", call.account());
            write_routes(xml, vpc);
            xml.within("propagatingVgwSet", |_| {})
                .within("tagSet", |_| {});
        });
        xml.el_if("nextToken", part.next_token.as_deref());
    }))
}

fn write_routes(xml: &mut Xml, vpc: &Vpc) {
    xml.list("routeSet", &vpc.cidrs, |xml, cidr| {
        xml.el("destinationCidrBlock", cidr)
            .el("gatewayId", "local")
            .el("state", "active")
            .el("origin", "CreateRouteTable");
    });
    xml.list("associationSet", [vpc], |xml, vpc| {
        xml.el("routeTableAssociationId", association_id(vpc))
            .el("routeTableId", table_id(vpc))
            .el("main", true)
            .within("associationState", |xml| {
                xml.el("state", "associated");
            });
    });
}
