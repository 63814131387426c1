// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package images has the flags that commands which make policies share: sources of images, capabilities that are
// opened, and the initdata to which a policy is added.
package images

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/pflag"

	"github.com/coco-shim/coco/cmd/coco/internal/cli"
	"github.com/coco-shim/coco/cmd/coco/internal/progress"
	"github.com/coco-shim/coco/image/resolve"
	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/gen"
	"github.com/coco-shim/coco/policy/gen/predict"
)

// Flags say where images are.
type Flags struct {
	images            []string
	platform, cache   string
	offline, insecure bool
}

// Add adds the flags to a command's.
func (o *Flags) Add(f *pflag.FlagSet) {
	f.StringArrayVar(&o.images, "images", nil,
		"OCI layout or docker archive with images, before registries; may be repeated")
	f.StringVar(&o.platform, "platform", "linux/amd64", "platform of an index's image")
	f.BoolVar(&o.offline, "offline", false, "ask no registry")
	f.BoolVar(&o.insecure, "insecure-registry", false, "ask registries by HTTP")
	f.StringVar(&o.cache, "cache", defaultCache(),
		"directory with the results of images that were read before; \"\": none")
}

// defaultCache is where results are kept for this user.
func defaultCache() string {
	if d, err := os.UserCacheDir(); err == nil {
		return filepath.Join(d, "coco", "images")
	}
	return ""
}

// Finder finds the images that the flags name.
type Finder struct{ find resolve.Finder }

// Finder returns one that shows its steps.
func (o *Flags) Finder(steps progress.Shown) (*Finder, error) {
	platform, err := v1.ParsePlatform(o.platform)
	if err != nil {
		return nil, fmt.Errorf("--platform: %w", err)
	}
	f := resolve.Finder{
		Offline: o.offline, Insecure: o.insecure, Platform: platform, Cache: resolve.Cache(o.cache), Progress: shown{steps},
	}
	for _, path := range o.images {
		s, err := resolve.OpenStore(path)
		if err != nil {
			return nil, fmt.Errorf("--images: %w", err)
		}
		f.Local = append(f.Local, s)
	}
	return &Finder{f}, nil
}

// shown shows the resolver's steps.
type shown struct{ progress.Shown }

// Step begins a step.
func (s shown) Step(title string, total int64) resolve.Task { return s.Shown.Step(title, total) }

// Image finds an image, and returns its reference with its digest as well.
func (f *Finder) Image(ctx context.Context, ref string) (out gen.Image, pinned string, err error) {
	i, err := f.find.Resolve(ctx, ref)
	if err != nil {
		return out, "", err
	}
	out = gen.Image{
		Manifest: i.Digest, Layers: i.Layers, Files: map[string][]policy.File{},
		Config: predict.Image{
			Entrypoint: i.Config.Entrypoint, Cmd: i.Config.Cmd, Env: i.Config.Env, User: i.Config.User,
			WorkingDir: i.Config.WorkingDir, Passwd: i.Passwd, Group: i.Group,
		},
	}
	for v, files := range i.Volumes {
		out.Config.Volumes = append(out.Config.Volumes, v)
		for _, f := range files {
			out.Files[v] = append(out.Files[v], policy.File{Path: f.Path, SHA256: f.SHA256})
		}
	}
	slices.Sort(out.Config.Volumes)
	out.Repository, err = i.Repository()
	return out, i.Pinned(), err
}

// capabilities are the words of --allow.
var capabilities = map[string]func(*gen.Allow) *bool{
	"exec": func(a *gen.Allow) *bool { return &a.Exec }, "logs": func(a *gen.Allow) *bool { return &a.Logs },
	"stdin": func(a *gen.Allow) *bool { return &a.Stdin }, "stats": func(a *gen.Allow) *bool { return &a.Stats },
	"debug": func(a *gen.Allow) *bool { return &a.Debug }, "copy": func(a *gen.Allow) *bool { return &a.Copy },
	"port-forward": func(a *gen.Allow) *bool { return &a.PortForward },
}

func words() string { return strings.Join(slices.Sorted(maps.Keys(capabilities)), ", ") }

// Allow is the flag --allow.
type Allow []string

// Add adds the flag to a command's.
func (a *Allow) Add(f *pflag.FlagSet) {
	f.StringSliceVar((*[]string)(a), "allow", nil, "open capabilities: "+words())
}

// Open opens what the flag names.
func (a Allow) Open(of *gen.Allow) error {
	for _, word := range a {
		open, ok := capabilities[word]
		if !ok {
			return fmt.Errorf("--allow %q: known are %s", word, words())
		}
		*open(of) = true
	}
	return nil
}

// InitdataFiles returns the files of the initdata that the flag --initdata names, to which a command adds its policy.
// It returns none for "".
func InitdataFiles(path string) (map[string]string, error) {
	if path == "" {
		return map[string]string{}, nil
	}
	b, err := cli.ReadFile(path, initdata.MaxText)
	if err != nil {
		return nil, fmt.Errorf("--initdata: %w", err)
	}
	d, err := initdata.FromText(b)
	if err != nil {
		return nil, fmt.Errorf("--initdata %s: %w", path, err)
	}
	return d.Data, nil
}
