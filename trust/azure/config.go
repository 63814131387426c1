// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package azure

import (
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"github.com/coco-shim/coco/azure/azhttp"
	"github.com/coco-shim/coco/azure/entra"
	"github.com/coco-shim/coco/internal/initdata"
)

// Bounds of a request to the endpoints.
const (
	defaultTimeout  = time.Minute
	longestTimeout  = 10 * time.Minute
	defaultAttempts = 4
	mostAttempts    = 20
)

// Config is how a guest reaches Azure's services.
type Config struct {
	Roots     []*x509.Certificate // of all services, and of the vaults' signatures; a guest has no others
	Metadata  string              // URL of the metadata service and THIM
	CertCache string              // URL; "": none
	ClientID  string              // managed identity, where the machine has several
	// Endorsements are statements on the launch digest (COSE_Sign1) for the attestation service.
	Endorsements [][]byte
	Timeout      time.Duration // for one request of a container
	Attempts     int           // for one answer of a service
	// Insecure sends evidence that proves nothing where the platform makes no other. Azure refuses it; fakes may not.
	Insecure bool
}

// file is azure.toml.
type file struct {
	CA           string   `toml:"ca"`
	Metadata     string   `toml:"metadata"`
	CertCache    string   `toml:"cert_cache"`
	ClientID     string   `toml:"client_id"`
	Endorsements []string `toml:"endorsements"`
	Timeout      string   `toml:"timeout"`
	Attempts     int      `toml:"attempts"`
	Insecure     bool     `toml:"insecure"`
}

// Parse reads azure.toml of initdata.
func Parse(files map[string]string) (Config, error) {
	text, ok := files[initdata.FileAzure]
	if !ok {
		return Config{}, fmt.Errorf("initdata has no %s, which says how Azure's services are reached", initdata.FileAzure)
	}
	var f file
	md, err := toml.Decode(text, &f)
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", initdata.FileAzure, err)
	}
	var unknown []string
	for _, k := range md.Undecoded() {
		unknown = append(unknown, k.String())
	}
	if slices.Sort(unknown); len(unknown) > 0 {
		return Config{}, fmt.Errorf("%s: coco does not know %.200s", initdata.FileAzure, strings.Join(unknown, ", "))
	}
	c, err := f.config()
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", initdata.FileAzure, err)
	}
	return c, nil
}

func (f file) config() (Config, error) {
	c := Config{
		Metadata: entra.MetadataURL, CertCache: f.CertCache, ClientID: f.ClientID, Timeout: defaultTimeout,
		Attempts: defaultAttempts, Insecure: f.Insecure,
	}
	var err error
	if c.Roots, err = azhttp.Certificates([]byte(f.CA)); err != nil {
		return c, fmt.Errorf("ca: %w (a guest has no CAs of a system)", err)
	}
	if f.Metadata != "" {
		c.Metadata = f.Metadata
	}
	if !strings.HasPrefix(c.Metadata, "http://") && !strings.HasPrefix(c.Metadata, "https://") {
		return c, fmt.Errorf("metadata: %.100q is no URL", c.Metadata)
	}
	if c.CertCache != "" {
		if _, err := azhttp.Endpoint(c.CertCache); err != nil {
			return c, fmt.Errorf("cert_cache: %w", err)
		}
	}
	for i, text := range f.Endorsements {
		b, err := base64.StdEncoding.DecodeString(text)
		if err != nil || len(b) == 0 {
			return c, fmt.Errorf("endorsements[%d] is not in base64", i)
		}
		c.Endorsements = append(c.Endorsements, b)
	}
	if f.Timeout != "" {
		c.Timeout, err = time.ParseDuration(f.Timeout)
		if err != nil || c.Timeout < time.Second || c.Timeout > longestTimeout {
			return c, fmt.Errorf("timeout: %.40q is no time from 1s to %v", f.Timeout, longestTimeout)
		}
	}
	if f.Attempts < 0 || f.Attempts > mostAttempts {
		return c, fmt.Errorf("attempts: %d is none of 1 to %d", f.Attempts, mostAttempts)
	}
	if f.Attempts > 0 {
		c.Attempts = f.Attempts
	}
	return c, nil
}
