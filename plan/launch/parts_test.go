// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"slices"
	"testing"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/initdata"
)

func TestInitdataAsksForParts(t *testing.T) {
	for _, tt := range []struct {
		name  string
		files []string
		want  []string
	}{
		{"none", nil, nil},
		{"a policy alone", []string{"policy.coco"}, nil},
		{"a broker", []string{"policy.coco", initdata.FileAA}, []string{contract.PartTrust}},
		{"a broker in two files", []string{initdata.FileAA, initdata.FileCDH}, []string{contract.PartTrust}},
	} {
		d := &initdata.Document{Data: map[string]string{}}
		for _, f := range tt.files {
			d.Data[f] = ""
		}
		if got := Parts(d); !slices.Equal(got, tt.want) {
			t.Errorf("%s: Parts() = %v, want %v", tt.name, got, tt.want)
		}
	}
	for text, want := range map[string][]string{
		`{"containers":[{"name":"a","workload":{"calls":["info"]}}]}`: {contract.PartTrust},
		`{"containers":[{"name":"workload"}]}`:                        nil,
		`{"containers":[{"args":["\"workload\":{"]}]}`:                nil,
	} {
		d := &initdata.Document{Data: map[string]string{initdata.FilePolicy: text}}
		if got := Parts(d); !slices.Equal(got, want) {
			t.Errorf("Parts(%s) = %v, want %v", text, got, want)
		}
	}
	if got := Parts(nil); got != nil {
		t.Errorf("Parts() without initdata = %v", got)
	}
}
