// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"slices"

	"github.com/coco-shim/coco/api/contract"
)

// section names the time at which the agent loads a module.
type section string

const (
	sectionBoot   section = contract.SectionBoot   // before the agent's channel opens
	sectionRootfs section = contract.SectionRootfs // in parallel to serving
	sectionLazy   section = contract.SectionLazy   // when a request needs it
	sectionReport section = contract.SectionReport // in a TEE, at boot
	sectionDemand section = contract.SectionDemand // when a container with the rights for it uses it
)

// sections in the order of the modules file.
var sections = []section{sectionBoot, sectionRootfs, sectionLazy, sectionReport, sectionDemand}

// rare are lazy modules of devices that few machines have, and of the workload API's port.
var rare = []string{
	"virtio_blk", "vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport", "inet_diag", "tcp_diag",
}

// packed says that a module stays compressed, as the kernel package has it (and signed): most pods never load it, and
// the initramfs is memory of every pod. The kernel inflates it.
func (m module) packed() bool {
	return m.section == sectionReport || m.section == sectionDemand || slices.Contains(rare, m.name)
}

// wanted are modules of a section.
type wanted struct {
	section section
	names   []string
}

// wantedModules is what a guest needs beyond what the cloud kernel has built in (virtio_pci and
// virtio_console among them), in load order; dependencies are added.
var wantedModules = []wanted{
	{sectionRootfs, []string{"virtio_scsi", "sd_mod", "dm_verity", "erofs", "overlay"}},
	{sectionLazy, []string{
		"virtio_blk", "virtio_net", "vmw_vsock_virtio_transport", "dm_crypt", "xts", "ext4",
		"aesni_intel", "sha256_ssse3", "tcp_diag",
	}},
	{sectionReport, []string{"configfs", "sev_guest", "tdx_guest"}},
}

// demandModules is the closed list of what a container with the rights for it may have loaded: tunnels, links, loop
// devices and packet filters, as Istio's init container, a VPN beside an application or Docker in a pod need them. What
// a kernel does not have is left out: kernels merge and drop such modules.
var demandModules = wanted{sectionDemand, []string{
	"tun", "veth", "bridge", "dummy", "macvlan", "ipvlan", "vxlan", "8021q", "ipip", "wireguard", "br_netfilter", "loop",

	"nf_tables", "nft_chain_nat", "nft_compat", "nft_ct", "nft_nat", "nft_masq", "nft_redir", "nft_reject",
	"nft_reject_inet",
	"nft_reject_ipv4", "nft_reject_ipv6", "nft_log", "nft_limit", "nft_numgen", "nft_hash", "nft_quota",
	"nft_connlimit", "nft_fib",
	"nft_fib_inet", "nft_fib_ipv4", "nft_fib_ipv6", "nft_tproxy", "nft_socket", "nf_conntrack_netlink", "nfnetlink_log",

	"ip_tables", "iptable_filter", "iptable_nat", "iptable_mangle", "iptable_raw", "ipt_REJECT", "ipt_rpfilter",
	"ip6_tables", "ip6table_filter", "ip6table_nat", "ip6table_mangle", "ip6table_raw", "ip6t_REJECT", "ip6t_rpfilter",

	"xt_addrtype", "xt_comment", "xt_conntrack", "xt_connmark", "xt_cgroup", "xt_CT", "xt_hashlimit",
	"xt_iprange", "xt_length",
	"xt_limit", "xt_LOG", "xt_mac", "xt_mark", "xt_MASQUERADE", "xt_multiport", "xt_nat", "xt_NETMAP",
	"xt_NFLOG", "xt_owner",
	"xt_physdev", "xt_pkttype", "xt_recent", "xt_REDIRECT", "xt_set", "xt_socket", "xt_state", "xt_statistic", "xt_string",
	"xt_tcpmss", "xt_TCPMSS", "xt_tcpudp", "xt_TPROXY",

	"ip_set", "ip_set_hash_ip", "ip_set_hash_net", "ip_set_hash_ipport", "ip_set_list_set",
}}
