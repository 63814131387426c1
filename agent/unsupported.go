// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/emptypb"

	pb "github.com/coco-shim/coco/api/agent"
)

// unsupported answers the calls that this agent does not offer. They are listed so that none is
// pretended: memory and vCPUs of a VM are fixed at launch, swap would leave the measured guest,
// policies come with the guest's configuration, and firewall rules and volume growth have no user.
type unsupported struct{}

func no(what string) error { return fmt.Errorf("%s: %w", what, errdefs.ErrNotImplemented) }

func (unsupported) RemoveStaleVirtiofsShareMounts(context.Context,
	*pb.RemoveStaleVirtiofsShareMountsRequest,
) (*emptypb.Empty, error) {
	return nil, no("virtio-fs shares")
}

func (unsupported) GetIPTables(context.Context, *pb.GetIPTablesRequest) (*pb.GetIPTablesResponse, error) {
	return nil, no("iptables")
}

func (unsupported) SetIPTables(context.Context, *pb.SetIPTablesRequest) (*pb.SetIPTablesResponse, error) {
	return nil, no("iptables")
}

func (unsupported) MemAgentMemcgSet(context.Context, *pb.MemAgentMemcgConfig) (*emptypb.Empty, error) {
	return nil, no("memory agent")
}

func (unsupported) MemAgentCompactSet(context.Context, *pb.MemAgentCompactConfig) (*emptypb.Empty, error) {
	return nil, no("memory agent")
}

func (unsupported) MemHotplugByProbe(context.Context, *pb.MemHotplugByProbeRequest) (*emptypb.Empty, error) {
	return nil, no("memory hot-plug by probe")
}

func (unsupported) AddSwap(context.Context, *pb.AddSwapRequest) (*emptypb.Empty, error) {
	return nil, no("swap")
}

func (unsupported) AddSwapPath(context.Context, *pb.AddSwapPathRequest) (*emptypb.Empty, error) {
	return nil, no("swap")
}

func (unsupported) ResizeVolume(context.Context, *pb.ResizeVolumeRequest) (*emptypb.Empty, error) {
	return nil, no("resize of volumes")
}

func (unsupported) SetPolicy(context.Context, *pb.SetPolicyRequest) (*emptypb.Empty, error) {
	return nil, no("policy by request")
}
