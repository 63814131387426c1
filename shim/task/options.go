// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package task

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	api "github.com/coco-shim/coco/api/containerd"
	"github.com/coco-shim/coco/api/shimoptions"
)

// Options are the runtime options of the first Create: the path of the configuration or its text.
// The zero value means the default search.
type Options struct {
	ConfigPath  string
	ConfigBody  []byte
	Annotations map[string]string // overrides, as in the OCI spec
}

// DecodeOptions reads runtime options: none, containerd's generic ones or coco's own.
func DecodeOptions(a *anypb.Any) (Options, error) {
	name := typeName(a)
	var out Options
	switch name {
	case "":
		if len(a.GetValue()) > 0 {
			return Options{}, fmt.Errorf("runtime options have no type: %w", errdefs.ErrInvalidArgument)
		}
		return Options{}, nil
	case "runtimeoptions.v1.Options":
		var m api.RuntimeOptions
		if err := proto.Unmarshal(a.GetValue(), &m); err != nil {
			return Options{}, fmt.Errorf("runtime options %s: %w: %w", name, err, errdefs.ErrInvalidArgument)
		}
		// Its own type_url names the format of the body. Ours is always TOML.
		out = Options{ConfigPath: m.GetConfigPath(), ConfigBody: m.GetConfigBody()}
	case "coco.shim.v1.Options":
		var m shimoptions.Options
		if err := proto.Unmarshal(a.GetValue(), &m); err != nil {
			return Options{}, fmt.Errorf("runtime options %s: %w: %w", name, err, errdefs.ErrInvalidArgument)
		}
		out = Options{ConfigPath: m.GetConfigPath(), ConfigBody: m.GetConfigBody(), Annotations: m.GetAnnotations()}
	default:
		return Options{}, fmt.Errorf("runtime options of type %q are for another runtime: use runtimeoptions.v1.Options or "+
			"coco.shim.v1.Options: %w",
			a.GetTypeUrl(), errdefs.ErrInvalidArgument)
	}
	if out.ConfigPath != "" && !filepath.IsAbs(out.ConfigPath) {
		return Options{}, fmt.Errorf("runtime options: config path %q is not absolute: %w", out.ConfigPath,
			errdefs.ErrInvalidArgument)
	}
	return out, nil
}

// decodeJSON reads one of the JSON values that containerd packs into an Any. want is the end of its
// type URL.
func decodeJSON(a *anypb.Any, want string, into any) error {
	if name := typeName(a); name != want {
		return fmt.Errorf("value of type %q where %s is expected: %w", a.GetTypeUrl(), want, errdefs.ErrInvalidArgument)
	}
	if err := json.Unmarshal(a.GetValue(), into); err != nil {
		return fmt.Errorf("decode %s: %w: %w", want, err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// typeName is the type URL without what stands before its last slash.
func typeName(a *anypb.Any) string {
	url := a.GetTypeUrl()
	return url[strings.LastIndexByte(url, '/')+1:]
}
