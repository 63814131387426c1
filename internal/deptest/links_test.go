// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package deptest

import "testing"

// Web servers, templates and gRPC double the memory that each pod pays for its shim and agent.
const heavy = "its code and tables double the memory that each pod pays for"

func TestShimLinksNothingHeavy(t *testing.T) {
	Deny(t, Module+"/cmd/containerd-shim-coco-v2", map[string]string{
		"net/http": heavy, "html/template": heavy, "text/template": heavy, "google.golang.org/grpc/internal/transport": heavy,
		"golang.org/x/net/trace": heavy, "github.com/prometheus/client_golang/prometheus": heavy,
		"github.com/vishvananda/netlink":             "internal/netdump reads what the shim needs, and is smaller",
		"github.com/containerd/containerd/api/types": "api/containerd has its messages without regular expressions",
		"regexp": "every shim would compile its expressions and carry the tables of Unicode",
		"github.com/google/go-containerregistry/pkg/v1": heavy, "k8s.io/api/core/v1": heavy,
		"github.com/veraison/go-cose": heavy, Module + "/azure/azhttp": heavy,
		Module + "/agent": "it belongs to the guest",
		Module + "/guest": "images are built by the command, not by a shim",
	})
}

func TestAgentLinksNothingHeavy(t *testing.T) {
	Deny(t, Module+"/cmd/coco-agent", map[string]string{
		"net/http": heavy, "html/template": heavy, "text/template": heavy, "google.golang.org/grpc/internal/transport": heavy,
		"golang.org/x/net/trace": heavy, "github.com/prometheus/client_golang/prometheus": heavy,
		"github.com/google/go-containerregistry/pkg/v1": heavy, "k8s.io/api/core/v1": heavy,
		"github.com/veraison/go-cose": heavy, Module + "/azure/azhttp": heavy,
		Module + "/virtcontainers": "it belongs to the host", Module + "/hypervisor": "it belongs to the host",
		Module + "/shim/task": "it belongs to the host",
	})
}

// Each process of a guest has one of coco-oci on the host.
func TestStandInLinksNothingHeavy(t *testing.T) {
	Deny(t, Module+"/cmd/coco-oci", map[string]string{
		"net/http": heavy, "html/template": heavy, "text/template": heavy, "google.golang.org/grpc/internal/transport": heavy,
		"golang.org/x/net/trace": heavy, "github.com/spf13/cobra": "flags of the standard library suffice",
		Module + "/virtcontainers": "the pod is the shim's", Module + "/shim/task": "the pod is the shim's",
		Module + "/configs": "the shim reads its configuration itself",
	})
}
