// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/agent/types"
	"github.com/containerd/errdefs"
)

// noNetwork answers until package netcfg is wired in.
type noNetwork struct{}

var errNoNetwork = fmt.Errorf("network configuration: %w", errdefs.ErrNotImplemented)

func (noNetwork) UpdateInterface(context.Context, *types.Interface) (*types.Interface, error) {
	return nil, errNoNetwork
}
func (noNetwork) UpdateRoutes(context.Context, *pb.Routes) (*pb.Routes, error) {
	return nil, errNoNetwork
}
func (noNetwork) ListInterfaces(context.Context) (*pb.Interfaces, error) { return nil, errNoNetwork }
func (noNetwork) ListRoutes(context.Context) (*pb.Routes, error)         { return nil, errNoNetwork }
func (noNetwork) AddNeighbors(context.Context, *pb.ARPNeighbors) error   { return errNoNetwork }
func (noNetwork) SetDNS(context.Context, []string) error                 { return errNoNetwork }
