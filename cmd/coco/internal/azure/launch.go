// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package azure

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/azure/release"
	"github.com/coco-shim/coco/cmd/coco/internal/cli"
	"github.com/coco-shim/coco/internal/initdata"
)

// predicted are the members of coco measure's JSON that become claims.
type predicted struct {
	Platform        string            `json:"platform"`
	Digest          string            `json:"digest"`
	HostData        string            `json:"host_data"`
	Policy          string            `json:"policy"`
	IDKeyDigest     string            `json:"id_key_digest"`
	AuthorKeyDigest string            `json:"author_key_digest"`
	Registers       map[string]string `json:"registers"`
}

// read reads the files of --launch. Each has one launch, a list, or reference values for our broker.
func (l *launches) read(cmd *cobra.Command) ([]release.Launch, error) {
	if len(l.files) == 0 {
		return nil, errors.New("give --launch with the JSON of coco measure")
	}
	var doc *initdata.Document
	if l.initdata != "" {
		b, err := cli.Input(cmd, l.initdata, maxInput)
		if err != nil {
			return nil, err
		}
		if doc, err = initdata.FromText(b); err != nil {
			return nil, fmt.Errorf("--initdata %s: %w", l.initdata, err)
		}
	}
	var out []release.Launch
	for _, path := range l.files {
		b, err := cli.Input(cmd, path, maxInput)
		if err != nil {
			return nil, err
		}
		list, err := parseLaunches(b)
		if err != nil {
			return nil, fmt.Errorf("--launch %s: %w", path, err)
		}
		for _, p := range list {
			if err := p.bind(doc); err != nil {
				return nil, fmt.Errorf("--launch %s: %w", path, err)
			}
			out = append(out, release.Launch{
				Platform: p.Platform, Digest: p.Digest, HostData: p.HostData, Policy: p.Policy,
				IDKeyDigest: p.IDKeyDigest, AuthorKeyDigest: p.AuthorKeyDigest, Registers: p.Registers,
			})
		}
	}
	return out, nil
}

func parseLaunches(b []byte) ([]predicted, error) {
	var list []predicted
	if bytes.HasPrefix(bytes.TrimSpace(b), []byte("[")) {
		if err := json.Unmarshal(b, &list); err != nil {
			return nil, err
		}
	} else {
		var one struct {
			predicted
			Values []predicted `json:"values"`
		}
		if err := json.Unmarshal(b, &one); err != nil {
			return nil, fmt.Errorf("no JSON of coco measure --json: %w", err)
		}
		if list = one.Values; list == nil {
			list = []predicted{one.predicted}
		}
	}
	for _, p := range list {
		if p.Platform == "" {
			return nil, errors.New("no platform: give the JSON of coco measure --config … --pod … --json")
		}
	}
	return list, nil
}

// bind compares the launch's field for the initdata with the digest of the document, or sets the field where the launch
// has none.
func (p *predicted) bind(doc *initdata.Document) error {
	if doc == nil {
		return nil
	}
	n := map[string]int{"snp": 32, "tdx": 48}[p.Platform] // bytes of HOSTDATA, of MRCONFIGID
	if len(doc.Digest()) != n {
		return fmt.Errorf("--initdata has algorithm %q, whose digest does not have the length of the field of %s",
			doc.Algorithm, p.Platform)
	}
	want := hex.EncodeToString(doc.Digest())
	if strings.Trim(p.HostData, "0") != "" && p.HostData != want {
		return fmt.Errorf("the launch is bound to the initdata with digest %s, and that of --initdata is %s",
			p.HostData, want)
	}
	p.HostData = want
	return nil
}
