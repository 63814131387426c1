// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	api "github.com/coco-shim/coco/api/containerd"
)

// maxStdin bounds what start reads: options and a config body, not more.
const maxStdin = 8 << 20

// generation is the form of the answer that the daemon expects.
type generation int

const (
	plainAddress generation = iota // containerd 1.6
	jsonAnswer                     // containerd 1.7 to 2.2
	protoAnswer                    // containerd 2.3 and later
)

// The environment that containerd sets.
const (
	envTTRPCAddress = "TTRPC_ADDRESS"
	envMaxVersion   = "MAX_SHIM_VERSION"
)

// Params are the parameters of start, in either protocol generation.
type Params struct {
	Invocation
	TTRPCAddress string
	SocketDir    string // where the socket goes
	Options      []byte // runtime options, an encoded Any; empty if there were none
	generation   generation
}

// defaultSocketDir is where containerd's own shims have their sockets.
const defaultSocketDir = "/run/containerd/s"

// DecodeParams combines flags, environment and standard input.
func DecodeParams(inv Invocation, stdin []byte, env func(string) string) (Params, error) {
	p := Params{Invocation: inv, TTRPCAddress: env(envTTRPCAddress), SocketDir: defaultSocketDir}
	if env(envMaxVersion) != "" {
		p.generation = jsonAnswer
	}
	if len(stdin) == 0 {
		return p, nil
	}
	var b api.BootstrapParams
	if err := proto.Unmarshal(stdin, &b); err == nil && b.GetInstanceId() == inv.ID && b.GetNamespace() == inv.Namespace {
		return p.withBootstrap(&b)
	}
	var opts anypb.Any
	if err := proto.Unmarshal(stdin, &opts); err != nil {
		return Params{}, fmt.Errorf("standard input holds neither bootstrap parameters for %s/%s nor runtime options: %w: %w",
			inv.Namespace, inv.ID, err, errdefs.ErrInvalidArgument)
	}
	p.Options = stdin // for a task they come again with Create
	return p, nil
}

func (p Params) withBootstrap(b *api.BootstrapParams) (Params, error) {
	p.generation = protoAnswer
	if b.GetLogLevel() <= api.LogLevel_LOG_LEVEL_DEBUG {
		p.Debug = true
	}
	for dst, src := range map[*string]string{
		&p.TTRPCAddress: b.GetContainerdTtrpcAddress(), &p.Address: b.GetContainerdGrpcAddress(),
		&p.PublishBinary: b.GetContainerdBinary(), &p.SocketDir: b.GetSocketDir(),
	} {
		if src != "" {
			*dst = src
		}
	}
	if !strings.HasPrefix(p.SocketDir, "/") {
		return Params{}, fmt.Errorf("socket directory %q is not absolute: %w", p.SocketDir, errdefs.ErrInvalidArgument)
	}
	for _, e := range b.GetExtensions() {
		if strings.HasSuffix(e.GetValue().GetTypeUrl(), "Options") {
			opts, err := proto.Marshal(e.GetValue())
			if err != nil {
				return Params{}, fmt.Errorf("runtime options: %w", err)
			}
			p.Options = opts // for a task they come again with Create
		}
	}
	return p, nil
}

// answer encodes the address in the form that the daemon reads.
func (p Params) answer(address string) ([]byte, error) {
	switch p.generation {
	case plainAddress:
		return []byte(address), nil
	case jsonAnswer:
		// Version 2 and not 3: containerd 1.7 refuses more, and 2.0 to 2.2 do not send their version.
		return json.Marshal(struct {
			Version  int    `json:"version"`
			Address  string `json:"address"`
			Protocol string `json:"protocol"`
		}{2, address, "ttrpc"})
	}
	return proto.Marshal(&api.BootstrapResult{Version: 3, Address: address, Protocol: "ttrpc"})
}
