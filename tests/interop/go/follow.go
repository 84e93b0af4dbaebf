// This file answers: what does each of many open go-spiffe watches hold, and
// from which moment on?
package main

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"sort"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func runFollow(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("follow", flag.ContinueOnError)
	streams := flags.Int("streams", 1, "how many watches to open, each on a connection of its own")
	jwtBundles := flags.Bool("jwt-bundles", false, "watch JWT bundles too")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *streams < 1 {
		return errors.New("--streams must be at least 1")
	}
	log := &followLog{encoder: json.NewEncoder(os.Stdout)}
	var watches sync.WaitGroup
	ended := make(chan error, 2**streams)
	watch := func(run func() error) {
		watches.Add(1)
		go func() {
			defer watches.Done()
			ended <- run()
		}()
	}
	for n := range *streams {
		client, err := workloadapi.New(ctx)
		if err != nil {
			return err
		}
		defer client.Close()
		follower := &follower{stream: n, log: log}
		watch(func() error { return client.WatchX509Context(ctx, follower) })
		if *jwtBundles {
			watch(func() error { return client.WatchJWTBundles(ctx, follower) })
		}
	}
	watches.Wait()
	if ctx.Err() != nil {
		return nil // somebody stopped us
	}
	return <-ended
}

// follower is one open watch.
type follower struct {
	stream int
	log    *followLog
}

// heldLine is everything that a watch holds from this moment on.
type heldLine struct {
	Kind     string     `json:"kind"`
	Stream   int        `json:"stream"`
	Received string     `json:"received"`
	SVIDs    []heldSVID `json:"svids"`
	// Bundles names the X.509 authorities by trust domain: the SHA-256 of each
	// certificate in lower-case hexadecimal, sorted.
	Bundles map[string][]string `json:"bundles"`
	// Faults says what of it does not verify against the bundles beside it.
	Faults []string `json:"faults"`
}

type heldSVID struct {
	SpiffeID string   `json:"spiffe_id"`
	Hint     string   `json:"hint"`
	DNSNames []string `json:"dns_names"`
	Serial   string   `json:"serial"`
	NotAfter string   `json:"not_after"`
	// Signer is the key identifier of the authority in lower-case hexadecimal.
	Signer string `json:"signer"`
}

// jwtBundlesLine names the JWT authorities that a watch holds: key ids by
// trust domain, sorted.
type jwtBundlesLine struct {
	Kind     string              `json:"kind"`
	Stream   int                 `json:"stream"`
	Received string              `json:"received"`
	Bundles  map[string][]string `json:"bundles"`
}

type followErrorLine struct {
	Stream int `json:"stream"`
	errorLine
}

// OnX509ContextUpdate implements workloadapi.X509ContextWatcher.
func (f *follower) OnX509ContextUpdate(update *workloadapi.X509Context) {
	line := heldLine{
		Kind:     "held",
		Stream:   f.stream,
		Received: now(), // before anything else takes its time
		SVIDs:    []heldSVID{},
		Bundles:  map[string][]string{},
		Faults:   []string{},
	}
	for _, svid := range update.SVIDs {
		leaf := svid.Certificates[0]
		line.SVIDs = append(line.SVIDs, heldSVID{
			SpiffeID: svid.ID.String(),
			Hint:     svid.Hint,
			DNSNames: append([]string{}, leaf.DNSNames...),
			Serial:   leaf.SerialNumber.Text(16),
			NotAfter: instant(leaf.NotAfter),
			Signer:   hex.EncodeToString(leaf.AuthorityKeyId),
		})
		if id, _, err := x509svid.Verify(svid.Certificates, update.Bundles); err != nil {
			line.Faults = append(line.Faults, fmt.Sprintf("%s: %v", svid.ID, err))
		} else if id != svid.ID {
			line.Faults = append(line.Faults, fmt.Sprintf("%s is announced as %s", id, svid.ID))
		}
	}
	for _, bundle := range update.Bundles.Bundles() {
		line.Bundles[bundle.TrustDomain().Name()] = fingerprints(bundle.X509Authorities())
	}
	f.log.write(line)
}

// OnX509ContextWatchError implements workloadapi.X509ContextWatcher.
func (f *follower) OnX509ContextWatchError(err error) {
	f.failed("x509", err)
}

// OnJWTBundlesUpdate implements workloadapi.JWTBundleWatcher.
func (f *follower) OnJWTBundlesUpdate(update *jwtbundle.Set) {
	line := jwtBundlesLine{Kind: "jwt_bundles", Stream: f.stream, Received: now(), Bundles: map[string][]string{}}
	for _, bundle := range update.Bundles() {
		ids := []string{}
		for id := range bundle.JWTAuthorities() {
			ids = append(ids, id)
		}
		sort.Strings(ids)
		line.Bundles[bundle.TrustDomain().Name()] = ids
	}
	f.log.write(line)
}

// OnJWTBundlesWatchError implements workloadapi.JWTBundleWatcher.
func (f *follower) OnJWTBundlesWatchError(err error) {
	f.failed("jwt bundles", err)
}

func (f *follower) failed(of string, err error) {
	if status.Code(err) == codes.Canceled || errors.Is(err, context.Canceled) {
		return // our own end
	}
	f.log.write(followErrorLine{
		Stream: f.stream,
		errorLine: errorLine{
			Kind: "error", Received: now(), Of: of, Code: status.Code(err).String(), Error: err.Error(),
		},
	})
}

func fingerprints(authorities []*x509.Certificate) []string {
	prints := []string{}
	for _, authority := range authorities {
		sum := sha256.Sum256(authority.Raw)
		prints = append(prints, hex.EncodeToString(sum[:]))
	}
	sort.Strings(prints)
	return prints
}

// followLog writes the lines of all watches, one at a time.
type followLog struct {
	mutex   sync.Mutex
	encoder *json.Encoder
}

func (l *followLog) write(line any) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if err := l.encoder.Encode(line); err != nil {
		// Whoever read us is gone.
		fmt.Fprintf(os.Stderr, "interop follow: %s: %v\n", time.Now().UTC().Format(time.RFC3339), err)
	}
}
