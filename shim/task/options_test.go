// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package task

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	api "github.com/coco-shim/coco/api/containerd"
	"github.com/coco-shim/coco/internal/worktest"
)

func TestDecodeOptions(t *testing.T) {
	pack := func(m proto.Message) []byte {
		data, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	body := pack(&api.RuntimeOptions{ConfigPath: "/c.toml", ConfigBody: []byte("x")})
	for _, tc := range []struct {
		name    string
		in      *anypb.Any
		want    Options
		wantErr string
	}{
		{"none", nil, Options{}, ""},
		{"empty", &anypb.Any{}, Options{}, ""},
		{
			"containerd's", &anypb.Any{TypeUrl: "runtimeoptions.v1.Options", Value: body},
			Options{ConfigPath: "/c.toml", ConfigBody: []byte("x")},
			"",
		},
		{
			"with a prefix", &anypb.Any{TypeUrl: "type.googleapis.com/runtimeoptions.v1.Options", Value: body},
			Options{ConfigPath: "/c.toml", ConfigBody: []byte("x")},
			"",
		},
		{
			"ours", &anypb.Any{TypeUrl: "coco.shim.v1.Options", Value: body},
			Options{ConfigPath: "/c.toml", ConfigBody: []byte("x")},
			"",
		},
		{"runc's", &anypb.Any{TypeUrl: "containerd.runc.v1.Options"}, Options{}, `"containerd.runc.v1.Options"`},
		{
			"broken", &anypb.Any{TypeUrl: "runtimeoptions.v1.Options", Value: []byte{0xff}},
			Options{},
			"runtimeoptions.v1.Options",
		},
		{"untyped", &anypb.Any{Value: body}, Options{}, "no type"},
		{"relative path", &anypb.Any{
			TypeUrl: "runtimeoptions.v1.Options",
			Value:   pack(&api.RuntimeOptions{ConfigPath: "c"}),
		}, Options{}, `"c"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := DecodeOptions(tc.in)
			if tc.wantErr != "" {
				if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), tc.wantErr) {
					t.Errorf("DecodeOptions = %v, want ErrInvalidArgument that says %s", err, tc.wantErr)
				}
				return
			}
			if diff := cmp.Diff(tc.want, got); err != nil || diff != "" {
				t.Errorf("DecodeOptions = %v (-want +got):\n%s", err, diff)
			}
		})
	}
}

func FuzzDecodeOptions(f *testing.F) {
	f.Add("runtimeoptions.v1.Options", []byte{})
	f.Add("x/coco.shim.v1.Options", []byte("\x0a\x02/c"))
	f.Fuzz(func(t *testing.T, url string, value []byte) {
		defer worktest.Bound(t, len(url)+len(value))()
		o, err := DecodeOptions(&anypb.Any{TypeUrl: url, Value: value})
		if err == nil && o.ConfigPath != "" && !filepath.IsAbs(o.ConfigPath) {
			t.Errorf("DecodeOptions(%q, %x) = %+v: relative path", url, value, o)
		}
	})
}
