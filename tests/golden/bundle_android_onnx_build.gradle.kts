// Written by `phi-edge bundle`. These lines go into the app module's build.gradle.kts.
android {
    defaultConfig {
        minSdk = 28
        ndk { abiFilters += "arm64-v8a" }
    }
    // Weights are mapped, not read: a compressed asset cannot be.
    androidResources { noCompress += listOf("pte", "onnx", "data") }
    // Libraries stay uncompressed and aligned in the APK, as devices with pages of 16 KB need.
    packaging { jniLibs { useLegacyPackaging = false } }
}

dependencies {
    implementation("com.microsoft.onnxruntime:onnxruntime-android:1.32.0")
    // onnxruntime-genai for Android is not on Maven: put the AAR of its GitHub release into libs/.
    implementation(files("libs/onnxruntime-genai-android-0.18.0.aar"))
}
